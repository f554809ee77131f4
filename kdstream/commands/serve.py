"""A web page that writes down what is said into the microphone, or in files dropped on it, as it hears it.

    python serve.py exp/distilled/encoder-epoch-30-avg-9-chunk-8-left-32.onnx

The other files that export.py wrote with that encoder are taken from beside it.  Open the address that is printed;
Ctrl-C ends it.  Several models are named, and the page offers them: `serve.py small=exp/small large=exp/large`.  With
--decoding-method modified_beam_search each client may give hotwords of its own.

sherpa-onnx decodes all clients together.  With an int8 model it decodes them one after another, since together a loud
client would change the words of the others: with several clients float32 takes less time.

Only this machine is served unless --host says more.  Browsers lend a microphone to other machines' pages over https
alone: give --tls-cert and --tls-key, or stand a proxy before it.  Programs speak to ws://HOST:PORT/stream; the messages
are listed at the top of kdstream/serving/protocol.py.  /healthz and /metrics are for operators.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Sequence
from pathlib import Path

from kdstream.config.decoding import DecodeConfig, SearchConfig
from kdstream.config.flags import LARGEST_PORT, add_arguments, flags_of, from_args, in_range, parser_of
from kdstream.endpoints import EndpointConfig
from kdstream.errors import UserError
from kdstream.serving.limits import LOOPBACK_NAMES, Limits

SEARCH_FLAGS = ("decoding_method", "beam_size", "blank_penalty", "hotwords_file", "hotwords_score")


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


def named_models(models: Sequence[str]) -> dict[str, Path]:
    """The models by name: NAME=PATH, or that of the directory.  Raises UserError for a name that two have."""
    named: dict[str, Path] = {}
    for model in models:
        name, equals, path = model.partition("=")
        if not equals or "/" in name:
            path = model
            name = (Path(path) if Path(path).is_dir() else Path(path).parent).resolve().name
        if not name or not path:
            raise UserError(f"{model}: has no name or no path", fix="write NAME=PATH")
        if name in named:
            raise UserError(f"two models are called {name}", fix=f"name them: {name}=... other={path}")
        named[name] = Path(path)
    return named


def main(argv: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    models = "Exported encoder, float32 or int8, or a directory with one; with several: NAME=PATH."
    parser.add_argument("models", nargs="+", metavar="[NAME=]PATH", help=models)
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on (default: 127.0.0.1).")
    port = in_range(int, minimum=0, maximum=LARGEST_PORT)
    parser.add_argument("--port", type=port, default=6006, help="Port; 0 takes a free one (default: 6006).")
    names = "Names in browsers' address bars, with commas (default: localhost's, and with another --host any)."
    parser.add_argument("--names", help=names)
    parser.add_argument("--tls-cert", help="Certificate, to serve https.")
    parser.add_argument("--tls-key", help="Its key.")
    threads = in_range(int, minimum=1)
    parser.add_argument("--num-threads", type=threads, default=1, help="Threads of sherpa-onnx (default: 1).")
    add_arguments(parser, Limits)
    # without endpoints a client's text would grow in memory for as long as it speaks
    rules = [item.name for item in flags_of(EndpointConfig) if item.name != "enable_endpoint"]
    add_arguments(parser, EndpointConfig, rules)
    add_arguments(parser, SearchConfig, SEARCH_FLAGS)
    args = parser.parse_args(argv)

    from kdstream.recognizer.loading import find_encoder
    from kdstream.serving.engine import Engine
    from kdstream.serving.runtime import Runtime, find_model, settings_of_search
    from kdstream.serving.server import Server, serve

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    tls = tls_context(args.tls_cert, args.tls_key)
    decode, rules, limits = from_args(DecodeConfig, args), from_args(EndpointConfig, args), from_args(Limits, args)
    own = settings_of_search(decode.decoding_method)
    decode.check_used(own)
    decode.warn_of_others(own)
    settings = {name: getattr(decode, name) for name in own}
    engines: dict[str, Engine] = {}
    for name, path in named_models(args.models).items():
        model = find_model(find_encoder(path, DecodeConfig(), None) if path.is_dir() else path)
        engines[name] = Engine(Runtime(model, args.num_threads, rules, decode.decoding_method, **settings))
        if model.mixes_rows:
            logging.info("%s: int8, so clients are decoded one by one; float32 is faster for several", model.encoder)
    server = Server(engines, limits, allowed_names(args.host, args.names))
    asyncio.run(serve(server, args.host, args.port, tls, lambda url: print(url, flush=True)))
