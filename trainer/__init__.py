"""A lean trainer of text-embedding models.

To read how a model is trained, in this order: `stages` (a run, stage by stage), `loop` (a stage, step by step), `data` and
`batch` (rows, and who is whose negative), `model` and `base` (texts to vectors), `losses` and `matryoshka`, `gradcache`,
`schedule`, `checkpoint`. A stage may have more: `teacher`, `remine`, `objectives`, `heads`, `freezing`, `consolidation`,
`distributed`, `unpadded`. `config` and `config_loss` say what can be asked for; `outcome`, `report` and `curves` what came of it.

evaluation/   nDCG by dimension on a build, and the families of MTEB
studies/      many runs: ablations, sweeps, rounds of build and training
finished/     what is done with a model: merge, rotate, serve, a page about it
search/       an index of a corpus, searched with few dimensions first
experimental/ what was tried and is no part of it
"""

from trainer.embedder import Embedder

__all__ = ["Embedder"]
