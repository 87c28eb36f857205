"""What the run is: its network as a graph, its config, its layers, its manifest."""

import json
import warnings
from typing import Any

import lightning as L
import torch
from omegaconf import OmegaConf

from vggexp.inspection.base import Inspection, examples, images, watched
from vggexp.inspection.cost import layers
from vggexp.runs import layout, manifest
from vggexp.system.text import clean, markdown


class Description(Inspection):
    """Shows the graph and the texts `config`, `layers` and `manifest` once, when the run begins."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero or trainer.global_step:
            return
        config = self.cfg.values()
        self.board.add_text("run/config", _fenced("yaml", OmegaConf.to_yaml(config)), 0)
        rows = ["| layer | kind | output shape | parameters | MACs |", "|---|---|---|---|---|"]
        for layer in layers(self.cfg):
            words = [markdown(layer.name), markdown(layer.kind), "×".join(map(str, layer.shape[1:]))]
            rows.append(f"| {' | '.join(words)} | {layer.parameters:,} | {layer.macs:,} |")
        self.board.add_text("run/layers", "\n".join(rows), 0)
        if (self.folder / layout.RESULT).exists():
            shown = {key: value for key, value in manifest.load(self.folder, "").items() if key != "config"}
            self.board.add_text("run/manifest", _fenced("json", json.dumps(shown, indent=2)), 0)
        net, data = pl_module.net, pl_module.trainer.datamodule
        batch = trainer.precision_plugin.convert_input(images(trainer, data, examples(data, 1)))
        compiled, net._compiled_call_impl = net._compiled_call_impl, None  # a compiled network cannot be traced
        try:
            with watched(trainer, net, {}), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's tracer warns about its own code
                self.board.add_graph(net, batch)
        finally:
            net._compiled_call_impl = compiled


def _fenced(kind: str, text: str) -> str:
    """A block of code in Markdown, which the text cannot leave."""
    return f"```{kind}\n{clean(text).replace('`', chr(0x2CB))}\n```"
