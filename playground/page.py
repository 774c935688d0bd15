"""What every tab is given: the shared choices of the sidebar, and the server behind them."""

import contextlib
import functools
import inspect
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import gradio as gr

from playground.jobs import Job, Jobs
from playground.models import Choice, Models, family_of
from playground.runs import Run, read_run
from playground.sessions import Session, Sessions, is_session_id
from playground.worker import message_of

HIDDEN = "undocumented"  # called by name, listed nowhere
DEVICE = {
    "concurrency_id": "device",
    "concurrency_limit": 1,
    "show_progress": "minimal",
    "api_visibility": HIDDEN,
}  # what computes
LIGHT = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": HIDDEN}  # what only looks


@dataclass
class Page:
    """The server's parts, and the components that drive every tab.

    Attributes:
        root: folder of the sessions' runs.
        outbox: folder of what is downloaded; it goes with the server.
        session_id: the browser's, kept there.
        model: key of the chosen model.
        other: key of the one it is compared with.
        prompt: the text that is read.
        opened: what fills the first tab: (function, inputs, outputs).
        tab: id of the tab that is looked at.
        applied: what fills the others, when a model or a prompt is chosen: (tab id, function, inputs, outputs,
            options).
    """

    sessions: Sessions
    jobs: Jobs
    models: Models
    root: Path
    outbox: tempfile.TemporaryDirectory = field(default_factory=tempfile.TemporaryDirectory)
    session_id: gr.BrowserState = None
    model: gr.Dropdown = None
    other: gr.Dropdown = None
    prompt: gr.Textbox = None
    opened: list = field(default_factory=list)
    tab: gr.State = None
    applied: list = field(default_factory=list)

    def session(self, session_id: object) -> Session:
        return self.sessions.get(session_id)

    def choice(self, session_id: object, key: object) -> Choice:
        return self.models.choice(self.session(session_id), key)

    def offered(self, session_id: object, file: Path) -> str:
        """A copy of a session's file to download; only such copies are ever served."""
        outbox = Path(self.outbox.name) / self.session(session_id).key
        outbox.mkdir(exist_ok=True)
        return str(shutil.copyfile(file, outbox / file.name))

    def class_of(self, choice: Choice) -> str:
        """The name of a model's class, from files alone."""
        return {"GPT": "CausalLM", "BERT": "MaskedLM", "T5": "Seq2SeqLM"}[family_of(choice.directory)]

    def shows(self, tab: gr.Tab, function: Callable, inputs: list, outputs, **options) -> None:
        """Fills a part of a tab: when the tab is opened, and when a model or a prompt is chosen while it is open."""
        self.applied.append((tab.id, function, inputs, outputs, options))

    def follows(self, tab: gr.Tab, clock: gr.Timer, function: Callable, inputs: list, outputs: list) -> None:
        """Looks at the session's newest job when the tab is opened, and at each tick of the clock until it is over.

        Args:
            function: of the job, which is over, and of the inputs, of which the session's id is the first.
        """

        def latest(session_id):
            return self.jobs.latest(self.session(session_id).key)

        def is_active(session_id):
            job = latest(session_id)
            return job is not None and job.is_active

        def look(session_id, *others):
            job = latest(session_id)
            return [gr.skip()] * len(outputs) if job is None or job.is_active else function(job, session_id, *others)

        def open_tab(session_id, *others):
            # This never stops the clock: looking takes a while, and a job may have been begun meanwhile.
            return *look(session_id, *others), gr.Timer(active=True) if is_active(session_id) else gr.skip()

        def tick(session_id, *others):
            return *look(session_id, *others), gr.skip() if is_active(session_id) else gr.Timer(active=False)

        self.shows(tab, open_tab, inputs, [*outputs, clock], **LIGHT)
        clock.tick(guarded(tick), inputs, [*outputs, clock], **LIGHT)

    def job(self, session: Session) -> tuple[Job | None, Run | None]:
        """The newest job of a session, and the run it works on."""
        job = self.jobs.latest(session.key)
        directory = job and job.arguments.get("output")
        return job, read_run(Path(directory)) if directory else None


def only_in(tab_id: str, function: Callable, outputs) -> Callable:
    """A handler with two more arguments in front, which changes nothing unless its tab is looked at, in a session."""
    nothing = [gr.skip()] * len(outputs) if isinstance(outputs, list) else gr.skip()

    def run(tab, session_id, *arguments):
        return function(*arguments) if tab == tab_id and is_session_id(session_id) else nothing

    def stream(tab, session_id, *arguments):
        if tab == tab_id and is_session_id(session_id):
            yield from function(*arguments)
        else:
            yield nothing

    return stream if inspect.isgeneratorfunction(function) else run


def guarded(function: Callable) -> Callable:
    """A handler whose expected errors are shown in the page, in words; the others, too, by their kind."""

    @functools.wraps(function)
    def run(*arguments, **keywords):
        with shown_errors():
            return function(*arguments, **keywords)

    @functools.wraps(function)
    def stream(*arguments, **keywords):
        with shown_errors():
            yield from function(*arguments, **keywords)

    return stream if inspect.isgeneratorfunction(function) else run


@contextlib.contextmanager
def shown_errors():
    """Turns errors into messages of the page."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        # The page draws messages as HTML.
        raise gr.Error(
            escape(message_of(error)), duration=None, title="This did not work", print_exception=False
        ) from None


def code_panel(page: Page, function: Callable, inputs: list) -> None:
    """“The code for this”: the script that does what a tab shows, made when it is opened or an input changes."""
    is_open = gr.State(False)
    with gr.Accordion("The code for this", open=False, elem_classes="code-panel") as accordion:
        code = gr.Code(language="python", interactive=False, show_label=False, lines=4, max_lines=24)
        gr.HTML('<p class="note">A whole script: it needs nothing but kerasllm and the files it names.</p>')

    def script(is_open, *values):
        return function(*values) if is_open else gr.skip()

    changes = [each.change for each in inputs if each is not page.session_id]
    gr.on([is_open.change, *changes], guarded(script), [is_open, *inputs], code, **LIGHT)
    accordion.expand(lambda: True, None, is_open, **LIGHT)
    accordion.collapse(lambda: False, None, is_open, **LIGHT)
