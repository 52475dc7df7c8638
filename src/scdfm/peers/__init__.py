"""Methods of others, live: any command predicts from a folder of training cells; six published ones are bundled."""

from scdfm.peers.command import HARD_STOP, Ran, run_command
from scdfm.peers.task import Answer, Task, read_answer, write_task

__all__ = ["HARD_STOP", "Answer", "Ran", "Task", "read_answer", "run_command", "write_task"]
