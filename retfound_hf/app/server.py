"""Server of the page: offline, on loopback unless told otherwise, with strict headers; the command `app`."""

import importlib.util
import ipaddress
import os
import re
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import BadArgumentError, missing_extra, require_range
from ..options import parse_arguments
from .uploads import Limits, patch_gradio, private_folder, sweep

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Gradio compiles its templates in the browser, hence the two `unsafe`; everything comes from this server alone.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = {b"content-security-policy": POLICY.encode(), b"referrer-policy": b"no-referrer",
           b"x-content-type-options": b"nosniff"}  # fmt: skip
# Before gradio is imported: no telemetry, no check for a newer version.
OFFLINE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
PASSWORD = "RETFOUND_APP_PASSWORD"
# Tries of one address, and of all together (a proxy's header may name any address), within so many seconds.
LOGINS, ALL_LOGINS, LOGIN_SECONDS = 10, 100, 60
MAX_BODY = 2**20  # bytes of a request that is no upload
# Addresses that gradio serves beside the page: videos for ffmpeg, other servers' answers, functions of components.
UNUSED = re.compile(r"/(process_recording|component_server|proxy=|stream/|(undo-)?vibe-|run-history|monitoring)")


class Guard:
    """ASGI middleware: `HEADERS` on every answer; refuses foreign host names, many log-ins, and endpoints out of use.

    A page elsewhere whose name its owner lets point to this machine (DNS rebinding) could read what is served here;
    its requests bear that name. An address of numbers cannot be made to point elsewhere.

    Args:
        app: the application.
        hosts: names by which the page may be asked for, beside addresses of numbers.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], hosts: Collection[str] = ()):
        self.app, self.hosts = app, {name.lower() for name in hosts}
        self.logins: dict[str, deque[float]] = {}  # times of tries by address

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse

        async def send_with_headers(event: dict[str, Any]) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event["headers"], *HEADERS.items()]
            await send(event)

        answer: Any = self.app
        if scope["type"] == "http":
            host, path = dict(scope["headers"]).get(b"host", b"").decode("latin-1"), scope["path"].rstrip("/")
            if not self._known(host):
                text = f"This page is not served as {host[:100]!r}; its owner can allow the name with --allowed_hosts."
                answer = PlainTextResponse(text, 400)
            elif UNUSED.search(path):
                answer = PlainTextResponse("Not found", 404)
            elif scope["method"] == "POST" and path.endswith("/login") and self._too_many(scope):
                answer = PlainTextResponse("Too many tries; wait a minute.", 429, {"Retry-After": str(LOGIN_SECONDS)})
            elif not path.endswith("/gradio_api/upload"):
                receive = _bounded(receive)
        await answer(scope, receive, send_with_headers)

    def _known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname
            return bool(name) and (name in self.hosts or bool(ipaddress.ip_address(name)))
        except ValueError:
            return False

    def _too_many(self, scope: dict[str, Any]) -> bool:
        now, address = time.monotonic(), (scope.get("client") or ("",))[0]
        for known, times in list(self.logins.items()):
            while times and times[0] < now - LOGIN_SECONDS:
                times.popleft()
            if not times:
                del self.logins[known]
        own, everybody = (self.logins.setdefault(key, deque()) for key in (address, "everybody"))
        if len(own) >= LOGINS or len(everybody) >= ALL_LOGINS:
            return True
        own.append(now)
        everybody.append(now)
        return False


def _bounded(receive: Callable[[], Awaitable[dict[str, Any]]]) -> Callable[[], Awaitable[dict[str, Any]]]:
    """ASGI `receive` that breaks off a body longer than `MAX_BODY`, which the server would keep in memory."""
    left = MAX_BODY

    async def receive_some() -> dict[str, Any]:
        nonlocal left
        event = await receive()
        left -= len(event.get("body", b""))
        return event if left >= 0 else {"type": "http.disconnect"}

    return receive_some


def serve(
    model: str, reconstruction_model: str | None = None, host: str = LOOPBACK[0], port: int = 7860,
    credentials: tuple[str, str] | None = None, limits: Limits | None = None, allowed_hosts: Sequence[str] = (),
) -> Any:  # fmt: skip
    """Load the model, answer once to warm up, and serve the page from threads of its own.

    Args:
        model: fine-tuned folder, adapter folder or Hub id; or a folder of pretraining, for its reconstructions alone.
        reconstruction_model: folder of pretraining whose reconstructions are shown beside the classifier.
        host: address to listen on.
        port: port to listen on.
        credentials: user and password that a visitor has to give.
        limits: for uploads.
        allowed_hosts: names by which visitors may ask for the page, beside addresses of numbers, the name of this
            machine, and that of the Space in which it runs.

    Returns:
        The gradio `Blocks`: `block_thread()` serves until interrupted, `close()` stops.

    Raises:
        MissingPackageError: gradio is not installed.
        BadArgumentError: the port is taken.
        BadModelError: neither a classifier nor a decoder in the folder.
    """
    if importlib.util.find_spec("gradio") is None:
        raise missing_extra("gradio", "app")
    _check_port(host, port)
    private_folder()
    os.environ.update(OFFLINE)
    from PIL import Image
    from starlette.middleware import Middleware

    from ..models.loading import read_config
    from .markup import HERE, theme
    from .page import SWEPT_AFTER, SWEPT_EVERY, build_page, labels
    from .predictor import Reader, Reconstructor

    patch_gradio()
    sweep(SWEPT_EVERY, SWEPT_AFTER)
    limits = limits or Limits()
    own = ("localhost", host, socket.gethostname(), socket.getfqdn(), *os.environ.get("SPACE_HOST", "").split(","))
    is_autoencoder = "ForPreTraining" in str(read_config(model).architectures)
    reader = None if is_autoencoder else Reader(model)
    decoder = model if is_autoencoder else reconstruction_model
    if reader is not None:
        reader.answer(Image.new("RGB", (64, 64)))  # so that the first visitor does not wait for what is done once
    page = build_page(reader, None if decoder is None else Reconstructor(decoder), limits)
    page.queue(default_concurrency_limit=2, max_size=64)
    # In the head and not as `css`, of which gradio narrows every rule to its own container.
    style = f"<style>{(HERE / 'style.css').read_text(encoding='utf-8')}</style>"
    page.launch(
        server_name=host, server_port=port, auth=credentials, max_file_size=limits.upload_bytes, theme=theme(),
        head=style, app_kwargs={"middleware": [Middleware(Guard, {*own, *allowed_hosts} - {""})]},
        prevent_thread_lock=True, i18n=labels(),
        quiet=True, share=False, ssr_mode=False, pwa=False, mcp_server=False, footer_links=[], run_history=False,
        enable_monitoring=False, show_error=False, inbrowser=False,
    )  # fmt: skip
    return page


def _check_port(host: str, port: int) -> None:
    """Raise before a large model is loaded, if the page could not be served."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = f"`port={port}` on {host} cannot be used: {error.strerror or error}; choose another"
            raise BadArgumentError(reason, field="port", value=port) from error


@dataclass
class AppArguments:
    model: str = field(metadata={"help": "fine-tuned folder, adapter folder or Hub id; or a folder of pretraining"})
    reconstruction_model: str | None = field(
        default=None, metadata={"help": "folder of pretraining, for a tab with its reconstructions"}
    )
    host: str = field(default=LOOPBACK[0], metadata={"help": "address to listen on; 0.0.0.0 for the whole network"})
    port: int = field(default=7860, metadata={"help": "port to listen on"})
    user: str | None = field(
        default=None,
        metadata={"help": f"ask visitors for this name and a password, from --password_file or {PASSWORD}"},
    )
    password_file: str | None = field(default=None, metadata={"help": "file whose first line is the password"})
    allowed_hosts: list[str] = field(
        default_factory=list,
        metadata={"help": "further names under which the page may be visited, such as that of a proxy in front of it"},
    )
    max_upload_mb: int = field(default=200, metadata={"help": "largest file that may be uploaded"})
    max_megapixels: int = field(default=100, metadata={"help": "largest image, in millions of pixels"})
    max_images: int = field(default=5000, metadata={"help": "most images of one batch"})

    def __post_init__(self) -> None:
        for name in ("max_upload_mb", "max_megapixels", "max_images"):
            require_range(name, getattr(self, name), 1)
        require_range("port", self.port, 1, 65535)
        if self.password_file is not None and self.user is None:
            reason = "`password_file` needs `user`, the name that goes with the password"
            raise BadArgumentError(reason, field="password_file", value=self.password_file)

    @property
    def limits(self) -> Limits:
        return Limits(self.max_upload_mb * 2**20, self.max_megapixels * 10**6, self.max_images)

    @property
    def credentials(self) -> tuple[str, str] | None:
        """User and password, None without a user. The password is not an option: others can read a command line."""
        if self.user is None:
            return None
        password = os.environ.get(PASSWORD, "")
        if self.password_file is not None:
            try:
                password = Path(self.password_file).read_text(encoding="utf-8").partition("\n")[0].strip()
            except OSError as error:
                reason = f"`password_file={self.password_file}` cannot be read: {error.strerror}"
                raise BadArgumentError(reason, field="password_file", value=self.password_file) from error
        if not password:
            reason = f"`user={self.user}` has no password; set {PASSWORD} or give `password_file`"
            raise BadArgumentError(reason, field="user", value=self.user)
        return self.user, password


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and serve until interrupted."""
    (asked,) = parse_arguments(AppArguments, argv=argv, description="A fine-tuned folder in a browser.")
    # A service is stopped by SIGTERM, a closed terminal sends SIGHUP; only an orderly end removes the uploads.
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as of nohup
            signal.signal(number, lambda *_: sys.exit(0))
    page = serve(
        asked.model, asked.reconstruction_model, asked.host, asked.port, asked.credentials, asked.limits,
        asked.allowed_hosts,
    )  # fmt: skip
    print(f"{asked.model}: http://{asked.host}:{asked.port}  (stop with Ctrl+C)", flush=True)
    if asked.host not in LOOPBACK and asked.user is None:
        print("Everybody who reaches this machine can use the page; ask for a password with --user.", flush=True)
    page.block_thread()
