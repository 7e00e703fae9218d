"""What the server remembers of a visitor, and for how long."""

import gc
import re
import time
from types import ModuleType

import httpx
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from retfound_hf.app.server import serve


def strings_within(root: object) -> list[str]:
    """Every string that can be reached from an object, but for those of modules and classes."""
    seen: set[int] = set()
    todo, found = [root], []
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, (ModuleType, type)):
            continue
        seen.add(id(one))
        if isinstance(one, str):
            found.append(one)
        todo += gc.get_referents(one)
    return found


@pytest.mark.parametrize("closed", [False, True])
def test_an_image_is_forgotten_whether_the_tab_stays_open_or_is_closed(
    closed, classifier_folder, photographs, free_port, monkeypatch
):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setenv("GRADIO_HEARTBEAT_INTERVAL", "0.2")
    monkeypatch.setattr("retfound_hf.app.page.KEPT_SECONDS", 3)
    page = serve(str(classifier_folder), port=free_port(), wait=False)
    try:
        client = Client(page.local_url, verbose=False)
        _, picture, *_ = client.predict(handle_file(photographs[0]), api_name="/answer")
        photo = re.search(r'class="rf-photo" src="([^"]+)"', picture)[1]
        session = page.app.state_holder.session_data[client.session_hash]
        (kept,) = (value for value in session.state_data.values() if value is not None)
        assert kept.photo.uri == photo and not any(isinstance(value, Image.Image) for value in vars(kept).values())
        if closed:
            with httpx.stream("GET", f"{page.local_url}gradio_api/heartbeat/{client.session_hash}") as alive:
                next(alive.iter_lines())
        del kept, picture
        for _ in range(100):
            if not session.state_data:
                break
            time.sleep(0.1)
        assert session.is_closed is closed and session.state_data == {}
        assert not any(photo in text for text in strings_within([session, vars(page._queue)]))
    finally:
        page.close(verbose=False)
