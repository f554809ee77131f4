"""Token language models: an LSTM, a bigram, and how they are trained; decoding/fusion.py searches with them."""
