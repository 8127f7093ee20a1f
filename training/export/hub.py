"""The layout that plain transformers loads: `AutoModel.from_pretrained(FOLDER, trust_remote_code=True)`.

    model.safetensors           the version's weights, byte for byte
    config.json                 its network, and where the two classes below are
    configuration_twohead.py    the network's configuration
    modeling_twohead.py         the network; needs torch and transformers only

The two code files run only on the machine of somebody who accepts remote code. Our own loader reads versions, never this layout.
"""

import json
import shutil
from importlib.resources import files
from pathlib import Path

from training.checkpoint import CONFIG_FILE, WEIGHTS_FILE

CODE_FILES = ("configuration_twohead.py", "modeling_twohead.py")
HUB_WEIGHTS_FILE = "model.safetensors"
_CLASSES = {"AutoConfig": "configuration_twohead.TwoHeadConfig", "AutoModel": "modeling_twohead.TwoHeadBert"}


def write_hub_layout(version_folder: Path, folder: Path) -> None:
    """Write weights, configuration and code beside the tokenizer that is in the folder already.

    Args:
        version_folder: A verified version.
        folder: Where to write.
    """
    shutil.copyfile(version_folder / WEIGHTS_FILE, folder / HUB_WEIGHTS_FILE)
    config = json.loads((version_folder / CONFIG_FILE).read_text(encoding="utf-8"))
    # In a version this key names its weights file; here it has the name that transformers expects.
    config.pop("transformers_weights", None)
    config["auto_map"] = _CLASSES
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in CODE_FILES:
        (folder / name).write_text(files("training.export").joinpath("hub_code", name).read_text(encoding="utf-8"), encoding="utf-8")
