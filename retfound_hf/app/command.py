"""The command `app`: a fine-tuned folder in a browser."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..runs.arguments import parse_arguments
from ..runs.errors import RetFoundError
from .limits import Limits
from .server import LOOPBACK, serve

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
