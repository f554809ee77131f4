"""A web page that writes down what is said into the microphone, or in files dropped on it, as it hears it.

    python serve.py exp/distilled/encoder-epoch-30-avg-9-chunk-8-left-32.onnx

The other files that export.py wrote with that encoder are taken from beside it.  Open the address that is printed;
Ctrl-C ends it.  sherpa-onnx decodes all clients together.  With an int8 model it decodes them one after another, since
together a loud client would change the words of the others: with several clients float32 takes less time.

Only this machine is served unless --host says more.  Browsers lend a microphone to other machines' pages over https
alone: give --tls-cert and --tls-key, or stand a proxy before it.  Programs speak to ws://HOST:PORT/stream; the messages
are listed at the top of kdstream/serving/server.py.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Sequence
from pathlib import Path

from kdstream.config.flags import add_arguments, flags_of, from_args, parser_of
from kdstream.config.sections import DecodeConfig
from kdstream.errors import UserError
from kdstream.serving.limits import LOOPBACK_NAMES, Limits

SEARCH_FLAGS = ("decoding_method", "beam_size", "hotwords_file", "hotwords_score")
BEAM = "--decoding-method modified_beam_search"


def tls_context(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    if cert is None and key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert or "", key)
    except (OSError, ValueError) as error:
        flag = f"--tls-cert {cert} --tls-key {key}"
        raise UserError(str(error), flag=flag, fix="give both, as PEM files") from error
    return context


def allowed_names(host: str, names: str | None) -> frozenset[str] | None:
    if names is not None:
        return frozenset(name.strip().lower() for name in names.split(","))
    return LOOPBACK_NAMES if host in LOOPBACK_NAMES else None


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("encoder", type=Path, help="The exported encoder, float32 or int8.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on (default: 127.0.0.1).")
    parser.add_argument("--port", type=int, default=6006, help="Port; 0 takes a free one (default: 6006).")
    names = "Names in browsers' address bars, with commas (default: localhost's, and with another --host any)."
    parser.add_argument("--names", help=names)
    parser.add_argument("--tls-cert", help="Certificate, to serve https.")
    parser.add_argument("--tls-key", help="Its key.")
    parser.add_argument("--num-threads", type=int, default=1, help="Threads of sherpa-onnx (default: 1).")
    add_arguments(parser, Limits)
    not_of_search = [item.name for item in flags_of(DecodeConfig) if item.name not in SEARCH_FLAGS]
    add_arguments(parser, DecodeConfig, leave_out=not_of_search)
    args = parser.parse_args(argv)

    from kdstream.serving.engine import Engine, find_model, load_recognizer, settings_of
    from kdstream.serving.server import Server, serve

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    tls = tls_context(args.tls_cert, args.tls_key)
    model = find_model(args.encoder)
    together = not model.mixes_rows
    if not together:
        logging.info("%s: int8, so clients are decoded one by one; float32 is faster for several", args.encoder)
    decode = from_args(DecodeConfig, args)
    settings = {name: getattr(decode, name) for name in settings_of(decode.decoding_method)}
    if decode.hotwords_file and not settings:
        raise UserError("greedy_search takes no hotwords", flag="--hotwords-file", fix=f"use {BEAM}")
    recognizer = load_recognizer(model, args.num_threads, decode.decoding_method, **settings)
    engine = Engine(recognizer, model.silence, together)
    server = Server(engine, from_args(Limits, args), allowed_names(args.host, args.names))
    asyncio.run(serve(server.app(), args.host, args.port, tls, lambda url: print(url, flush=True)))
