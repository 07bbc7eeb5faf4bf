"""The front end on one screen: routes, and the middleware in the order a request meets it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from frontend import health, pages, scrape
from frontend.auth import Auth
from frontend.correlation import Correlation
from frontend.dialects import Dialect, openai, original, tei
from frontend.documentation import docs
from frontend.embed import Embedder
from frontend.errors import Errors
from frontend.keys import KEYS_FILE, KeyRing
from frontend.limits.embedded import EmbeddedWindows
from frontend.metrics import RequestMetrics, StateMetrics
from frontend.model import Model
from frontend.protocol import TURNSTILE
from frontend.redis_link import RedisLink
from frontend.request_log import RequestLog
from frontend.services import open_embedder
from frontend.token_ids import load_cl100k
from frontend.tracing import open_tracing
from frontend.turnstile import Turnstile
from ipc.bundle import Bundle
from ipc.settings import Settings


async def root(request: Request) -> Response:
    """`/`: text-embeddings-inference's POST, and the page for people."""
    return await (tei.root if request.method == "POST" else pages.page)(request)


class Handler:
    """A request's function as an application: Starlette would wrap it in a handler of errors, and `Errors` is ours."""

    def __init__(self, function: Callable[[Request], Awaitable[Response]]) -> None:
        self._function = function

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        response = await self._function(Request(scope, receive, send))
        await response(scope, receive, send)


class Application(Starlette):
    """Starlette without its two middlewares for errors, one around ours and one within."""

    def build_middleware_stack(self) -> ASGIApp:
        """The given middleware around the router, and nothing else."""
        app: ASGIApp = self.router
        for middleware in reversed(self.user_middleware):
            app = middleware.cls(app, *middleware.args, **middleware.kwargs)
        return app


ROUTES: Final = [
    Route("/v1/embeddings", Handler(openai.embeddings), methods=["POST"]),
    Route("/embeddings", Handler(openai.embeddings), methods=["POST"]),
    Route("/embed", Handler(tei.embed), methods=["POST"]),
    Route("/similarity", Handler(tei.similarity), methods=["POST"]),
    Route("/", Handler(root), methods=["GET", "POST"]),
    Route("/tokenize", Handler(tei.tokenize), methods=["POST"]),
    Route("/info", Handler(tei.info), methods=["GET"]),
    Route("/v1/embed", Handler(original.embed), methods=["POST"]),
    Route("/v1/usage", Handler(original.usage), methods=["GET"]),
    Route("/v1/models", Handler(openai.models), methods=["GET"]),
    Route("/health", Handler(health.health), methods=["GET"]),
    Route("/ready", Handler(health.ready), methods=["GET"]),
    Route("/readiness", Handler(health.ready), methods=["GET"]),
    Route("/ping", Handler(health.ready), methods=["GET"]),
    Route("/metrics", Handler(scrape.metrics), methods=["GET"]),
    Route("/openapi.json", Handler(docs.document), methods=["GET"]),
    Route("/docs", Handler(docs.page), methods=["GET"]),
]

# What the page loads: no part of the interface, and so in none of its tables.
ASSETS: Final = [Route(path, Handler(file), methods=["GET"]) for path, file in pages.ASSETS.items()]

OPEN_PATHS: Final = frozenset({"/health", "/ready", "/readiness", "/ping", "/metrics", "/openapi.json", "/docs", "/"})
PATHS: Final = frozenset(route.path for route in ROUTES)

DIALECTS: Final[dict[str, Dialect]] = {
    "/v1/embeddings": openai,
    "/embeddings": openai,
    "/v1/models": openai,
    "/embed": tei,
    "/similarity": tei,
    "/": tei,
    "/tokenize": tei,
    "/info": tei,
}

# Those whose requests the engine answers.
ASKING: Final[dict[str, Dialect]] = {
    **{path: DIALECTS[path] for path in ("/v1/embeddings", "/embeddings", "/embed", "/similarity", "/")},
    "/v1/embed": original,
}


def create_app(settings: Settings, bundle: Bundle, key: str, process: str = "frontend") -> Starlette:
    """The ASGI application of one front end; it connects to the engine at start-up, whether there is one or not.

    `process` is its name in metrics, `key` is the server's own; those of the key file are followed while it runs.
    Raises StartError for a tokenizer that cannot be read, also OpenAI's where the settings ask for that, for a Redis
    URL that is none, where the run directory is full, and where tracing is on and cannot be had.
    """

    cl100k = load_cl100k() if settings.token_input == "cl100k" else None  # noqa: S105 - no password
    model = Model.load(bundle, settings)
    keys = KeyRing(key, settings.data_path / KEYS_FILE)
    link = RedisLink(settings.redis_url) if settings.redis_url else None
    # Here and not in the lifespan: where there is no room for them, the start must end with the status that says so.
    windows = EmbeddedWindows(settings.run_path)
    log = RequestLog()
    tracing = open_tracing(process) if settings.tracing else None
    registry = CollectorRegistry()
    metrics = RequestMetrics(registry, PATHS)
    open_paths = (OPEN_PATHS | pages.ASSETS.keys()) - ({"/metrics"} if settings.metrics_key else set())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, object]]:
        async with AsyncExitStack() as ends:
            if tracing is not None:
                ends.push_async_callback(tracing.close)
            ends.callback(log.close)
            embedder = open_embedder(settings, model, cl100k, windows, link)
            app.state.embedder = await ends.enter_async_context(embedder)
            state = StateMetrics(registry, process, app.state.embedder, link)
            ends.callback(state.close)
            state.start()
            ends.callback(keys.close)
            keys.watch()
            # Where there is tracing each request has a span.
            yield {} if tracing else {TURNSTILE: _turnstile(app.state.embedder, keys, log, metrics)}

    app = Application(
        routes=[*ROUTES, *ASSETS],
        middleware=[
            Middleware(Correlation, log=log, metrics=metrics),
            *([] if tracing is None else [tracing.middleware(PATHS)]),
            Middleware(Errors, dialects=DIALECTS, default=original),
            Middleware(Auth, keys=keys, open_paths=open_paths),
        ],
        lifespan=lifespan,
    )
    # A redirect would name the scheme and host that the client's headers claim.
    app.router.redirect_slashes = False
    app.state.scrape = scrape.Scrape(settings.run_path)
    app.state.documentation = docs.Documentation(settings)
    return app


def _turnstile(embedder: Embedder, keys: KeyRing, log: RequestLog, metrics: RequestMetrics) -> Turnstile:
    most_ms = embedder.settings.request_timeout_ms
    return Turnstile(embedder.client.gate, embedder.admission, keys, ASKING, log, metrics, most_ms)
