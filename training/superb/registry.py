"""The ten tasks by name."""

from .classification_tasks import EmotionRecognition, IntentClassification, KeywordSpotting, SpeakerIdentification
from .ctc_tasks import PhonemeRecognition, SlotFilling, SpeechRecognition
from .diarization_task import SpeakerDiarization
from .query_task import QueryByExample
from .settings import TASKS
from .task import Task
from .verification_task import SpeakerVerification

PROBED: dict[str, type[Task]] = {
    task.name: task
    for task in (
        PhonemeRecognition,
        SpeechRecognition,
        KeywordSpotting,
        IntentClassification,
        EmotionRecognition,
        SpeakerIdentification,
        SpeakerVerification,
        SpeakerDiarization,
        SlotFilling,
    )
}
KINDS: dict[str, type[Task] | type[QueryByExample]] = {**PROBED, QueryByExample.name: QueryByExample}


def parse_tasks(names: str | list[str]) -> list[str]:
    """Names of tasks, from a list or a string with commas or spaces; "all" are all of them, in SUPERB's order.

    Raises:
        ValueError: One is unknown, or there is none.
    """
    names = names.replace(",", " ").split() if isinstance(names, str) else list(names)
    if unknown := [name for name in names if name not in (*TASKS, "all")]:
        raise ValueError(f"unknown task {unknown[0]!r}; tasks are {', '.join(TASKS)}, or all")
    if not names:
        raise ValueError(f"no task to evaluate; name some of {', '.join(TASKS)}, or all")
    return [task for task in TASKS if task in names or "all" in names]
