"""Server of the page: offline, on loopback unless told otherwise, with strict headers; the command `app`."""

import errno
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RetFoundError, missing_extra
from ..options import parse_arguments
from .page import forget_sessions
from .uploads import Limits, place_uploads_apart, private_folder

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Gradio compiles its templates in the browser, hence the two `unsafe`; everything comes from this server alone.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
# Before gradio is imported: no telemetry, no question for a newer version.
OFFLINE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


class SafeHeaders:
    """ASGI middleware that adds `HEADERS` to every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        async def send_with_headers(event: dict[str, Any]) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event["headers"], *HEADERS.items()]
            await send(event)

        await self.app(scope, receive, send_with_headers)


def serve(
    model: str,
    reconstruction_model: str | None = None,
    host: str = LOOPBACK[0],
    port: int = 7860,
    credentials: tuple[str, str] | None = None,
    limits: Limits | None = None,
    wait: bool = True,
) -> Any:
    """Load the model, answer once to warm up, and serve the page until interrupted.

    Args:
        model: fine-tuned folder, adapter folder or Hub id; or a folder of pretraining, for its reconstructions alone.
        reconstruction_model: folder of pretraining whose reconstructions are shown beside the classifier.
        credentials: user and password that a visitor has to give.
        wait: return at once when false, with the page running in threads of its own.

    Returns:
        The gradio `Blocks`; `close()` stops it.

    Raises:
        RetFoundError: gradio is not installed, neither a classifier nor a decoder in the folder, or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise missing_extra("gradio", "app")
    _check_port(host, port)
    private_folder()
    os.environ.update(OFFLINE)
    from starlette.middleware import Middleware

    from ..models.loading import read_config
    from .markup import theme
    from .page import STYLE, Painter, build_page
    from .predictor import Reader

    place_uploads_apart()
    forget_sessions()
    limits = limits or Limits()
    is_autoencoder = "ForPreTraining" in str(read_config(model).architectures)
    reader = None if is_autoencoder else Reader(model)
    decoder = model if is_autoencoder else reconstruction_model
    painter = None if decoder is None else Painter(decoder)
    if reader is not None:
        reader.warm_up()
    page = build_page(reader, painter, limits)
    page.queue(default_concurrency_limit=2, max_size=64)
    # In the head and not as `css`, of which gradio narrows every rule to its own container.
    style = f"<style>{STYLE.read_text(encoding='utf-8')}</style>"
    page.launch(
        server_name=host, server_port=port, auth=credentials, max_file_size=limits.upload_bytes, theme=theme(),
        head=style, app_kwargs={"middleware": [Middleware(SafeHeaders)]}, prevent_thread_lock=True,
        quiet=True, share=False, ssr_mode=False, pwa=False, mcp_server=False, footer_links=[], run_history=False,
        enable_monitoring=False, show_error=False, inbrowser=False,
    )  # fmt: skip
    print(f"{model}: http://{host}:{port}  (stop with Ctrl+C)", flush=True)
    if host not in LOOPBACK and credentials is None:
        print("Everybody who reaches this machine can use the page; ask for a password with --user.", flush=True)
    if wait:
        # A service is stopped by SIGTERM; only an orderly end removes what uploads are still there.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        page.block_thread()
    return page


def _check_port(host: str, port: int) -> None:
    """Raise before a large model is loaded, if the page could not be served."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror or error})"
            raise RetFoundError(f"port {port} on {host} {reason}; choose another with --port") from error


PASSWORD = "RETFOUND_APP_PASSWORD"


@dataclass
class AppArguments:
    model: str = field(metadata={"help": "fine-tuned folder, adapter folder or Hub id; or a folder of pretraining"})
    reconstruction_model: str | None = field(
        default=None, metadata={"help": "folder of pretraining whose reconstructions are shown in a tab"}
    )
    host: str = field(default=LOOPBACK[0], metadata={"help": "address to listen on; 0.0.0.0 for the whole network"})
    port: int = field(default=7860, metadata={"help": "port to listen on"})
    user: str | None = field(
        default=None,
        metadata={"help": f"ask visitors for this name and a password, from --password_file or {PASSWORD}"},
    )
    password_file: str | None = field(default=None, metadata={"help": "file whose first line is the password"})
    max_upload_mb: int = field(default=200, metadata={"help": "largest file that may be uploaded"})
    max_megapixels: int = field(default=100, metadata={"help": "largest image, in millions of pixels"})
    max_images: int = field(default=5000, metadata={"help": "most images of one batch"})

    def __post_init__(self) -> None:
        for name in ("max_upload_mb", "max_megapixels", "max_images"):
            if getattr(self, name) < 1:
                raise RetFoundError(f"--{name} {getattr(self, name)} must be at least 1")
        if not 1 <= self.port <= 65535:
            raise RetFoundError(f"--port {self.port} is out of range; give 1 to 65535")

    @property
    def limits(self) -> Limits:
        return Limits(self.max_upload_mb * 2**20, self.max_megapixels * 10**6, self.max_images)

    @property
    def credentials(self) -> tuple[str, str] | None:
        """User and password, None without a user. The password is no option: others can read a command line."""
        if self.user is None:
            if self.password_file is not None:
                raise RetFoundError("--password_file needs --user, the name that goes with it")
            return None
        return self.user, self._password()

    def _password(self) -> str:
        password = os.environ.get(PASSWORD, "")
        if self.password_file is not None:
            try:
                password = Path(self.password_file).read_text(encoding="utf-8").partition("\n")[0].strip()
            except OSError as error:
                raise RetFoundError(
                    f"--password_file {self.password_file} cannot be read: {error.strerror}"
                ) from error
        if not password:
            raise RetFoundError(f"--user {self.user} has no password; set {PASSWORD} or give --password_file")
        return password


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and serve until interrupted."""
    (arguments,) = parse_arguments(AppArguments, argv=argv, description="A fine-tuned folder in a browser.")
    serve(
        arguments.model,
        arguments.reconstruction_model,
        arguments.host,
        arguments.port,
        arguments.credentials,
        arguments.limits,
    )
