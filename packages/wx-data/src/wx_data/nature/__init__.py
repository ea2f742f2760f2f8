"""A simulated atmosphere as data: a global spectral primitive-equation model in torch.

`run` writes years of six-hourly fields as one CF data set with ERA5 names, `ensemble` forecasts of the same
model from perturbed true states, `operational` makes the imperfect model that stands for a physical centre.
It is data for development and benchmarks and is never weather.
"""

from wx_data.nature._config import NatureConfig
from wx_data.nature._ensemble import ensemble
from wx_data.nature._model import NatureModel
from wx_data.nature._restart import load_states, restart_states, save_states, spin_up
from wx_data.nature._run import run
from wx_data.nature._sphere import Analysis, Synthesis
from wx_data.nature._state import State
from wx_data.nature._transfer import operational, perturb, transfer

__all__ = [
    "Analysis",
    "NatureConfig",
    "NatureModel",
    "State",
    "Synthesis",
    "ensemble",
    "load_states",
    "operational",
    "perturb",
    "restart_states",
    "run",
    "save_states",
    "spin_up",
    "transfer",
]
