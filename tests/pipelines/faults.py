"""Two processes encode, and one of them meets one fault after the other.

-m tests.pipelines.faults RECIPE OUT DATA BAD: the last is a folder of shards with more broken samples than may be.
What a process has met is in OUT/met-RANK.json, by name, and the parts that it has written in OUT/made-RANK.json.
"""

import errno
import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from pipelines import encode, stages
from pipelines.cli import end_with
from pipelines.encode import Encoding, FirstSeen, Where
from pipelines.encoders import Encoders
from pipelines.runs import open_run
from pipelines.stages import lock, run_stage

OWN, WRITE, RANK = encode.encoded, encode.write_shard, int(os.environ.get("RANK", 0))


def main(recipe: Path, out: Path, data: Path, bad: Path) -> None:
    """Meet the faults, encode the rest, and end."""
    run, made, met = open_run(recipe, out=out, data=str(data)), [], {}
    stages.PATIENCE = 0

    def tried(name: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            met[name] = [type(error).__name__, str(error)]

    def noted(path, samples):
        WRITE(path, samples)
        made.append(path.name)

    def encode_but_for(error: Exception | None = None, after: int = 0):
        """What the stage does where the second process meets an error behind so many parts."""
        until = len(made) + after

        def encoded(*of):
            if RANK == 1 and error is not None and len(made) >= until:
                raise error
            return OWN(*of)

        encode.encoded = encoded
        run_stage(run, "encode")

    def unwritten(first, folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    opened = {Where("", "train"): encode.open_split(bad, "train")}
    work = Encoding(out / "bad", opened, Encoders.load(run, "encode"), 32, run.recipe.stage["encode"])
    tried("broken", lambda: work.make("encode"))
    encode.write_shard = noted
    with lock(run.stage_folder("encode"), "encode") if RANK == 0 else nullcontext():
        tried("locked", lambda: run_stage(run, "encode"))
    tried("full", lambda: encode_but_for(OSError(errno.ENOSPC, "No space left on device"), 1))
    tried("crashed", lambda: encode_but_for(RuntimeError("the decoder is out of memory")))
    own, FirstSeen.write = FirstSeen.write, unwritten
    tried("unwritten", encode_but_for)
    FirstSeen.write = own
    tried("well", encode_but_for)
    (out / f"met-{RANK}.json").write_text(json.dumps([met, made]))


if __name__ == "__main__":
    end_with(lambda: main(*map(Path, sys.argv[1:])))
