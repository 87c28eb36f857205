"""vggexp tune [again=true] [GROUP=CHOICE ...] [KEY=VALUE ...]

Shows what is fastest on this machine, as measured on a network's own convolutions, forward and backward: the precision
that trainer.precision=auto means, and how a CPU runs the layers. Training measures the same, once for a network, a
batch, a machine and its software, and keeps it in the cache; a run keeps its first choice.

  vggexp tune model=vgg11,vgg16 data.resize=96,224      several, one after another

  again=true    forgets what was measured before, and measures again

The other arguments are those of vggexp train. Seconds are those of a training step's measured layers on one thread.
"""

from vggexp.commands import options
from vggexp.config import compose
from vggexp.errors import UserError
from vggexp.runs import tables
from vggexp.system import paths, terminal

COLUMNS = ("network", "batch", "choice", "candidate", "seconds", "× the default", "chosen")


def main(args: list[str]) -> int:
    again, rest = options.take("again", args)
    if again not in (None, "true", "false"):
        raise UserError(f"again={again}: is not true or false")
    configs = compose.configs(*rest)

    from vggexp.config import choices  # here, so that a mistake is answered before torch is loaded

    rows = []
    for cfg in configs:
        _, found = choices.resolved(cfg, again=again == "true")
        name = f"{tables.network_name(cfg.model.spec())} {cfg.data.size}px"
        for each, choice in found.items():
            for candidate, seconds in (choice["seconds"] or {choice["chosen"]: None}).items():
                speed = seconds and f"{next(iter(choice['seconds'].values())) / seconds:.2f}"
                cells = [f"{seconds:.3f}" if seconds else "not measured", speed or ""]
                chosen = "chosen" if candidate == choice["chosen"] else ""
                rows.append([name, str(cfg.data.batch_size), each, candidate, *cells, chosen])
    terminal.console().print(terminal.table(COLUMNS, rows, left=4))
    terminal.say(f"kept in {terminal.short(paths.cache() / 'choices')}; not measured: no layer would run otherwise")
    return 0
