"""What the server remembers of a visitor: his last image, for a quarter of an hour, whether he stays or leaves."""

from typing import Any

KEPT_SECONDS = 900


def remembered() -> Any:
    """A gradio `State` whose value is forgotten `KEPT_SECONDS` after it was set."""
    import gradio

    return gradio.State(None, time_to_live=KEPT_SECONDS)


def forget_sessions() -> None:
    """Let gradio's sessions keep nothing but such states, and these no longer once their page is closed.

    Gradio gives the states of a closed page an hour, and remembers every value shown (the photograph and the table
    among them) for its deep links, of which this page has none, until ten thousand sessions have come after.
    """
    from gradio import state_holder

    shared = state_holder.SessionState
    if shared.__name__ == "ForgetfulSession":
        return

    class ForgetfulSession(shared):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.STATE_TTL_WHEN_CLOSED = KEPT_SECONDS

        def _update_value_in_config(self, key: int, value: Any) -> None:
            pass

    state_holder.SessionState = ForgetfulSession
