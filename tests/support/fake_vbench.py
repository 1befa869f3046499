"""An environment for VBench that takes no time: packages of the right names, scores from the bytes of the videos."""

from pathlib import Path

_FILES = {
    "torch/__init__.py": """
__version__ = "0.fake"
class version: cuda = None
class cuda:
    is_available = staticmethod(lambda: False)
class device:
    def __init__(self, text): self.type = text.partition(":")[0]
""",
    "torchvision/__init__.py": "",
    "vbench/__init__.py": "",
    "vbench/VBench_full_info.json": """[
 {"prompt_en": "a red car", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
 {"prompt_en": "a person is riding a bike", "dimension": ["human_action"]},
 {"prompt_en": "a beach", "dimension": ["temporal_flickering", "scene"], "auxiliary_info": {"scene": {}}},
 {"prompt_en": "a beach", "dimension": ["overall_consistency"]},
 {"prompt_en": "a still vase", "dimension": ["temporal_flickering"]}
]""",
    "vbench/utils.py": "def init_submodules(names, local): return dict.fromkeys(names)\n",
    "vbench/temporal_flickering.py": """
import json, os
def compute_temporal_flickering(path, device, submodules):
    found = []
    for info in json.load(open(path)):
        (video,) = info["video_list"]
        if "explodes" in info["prompt_en"]: raise ValueError("boom")
        if "dies" in info["prompt_en"]: os._exit(9)
        if "skipped" in info["prompt_en"]: continue
        value = float("nan") if "nan" in info["prompt_en"] else os.path.getsize(video) % 97 / 97
        found.append({"video_path": video, "video_results": value})
    return None, found
""",
    "vbench/dynamic_degree.py": "import not_there\n",
    "vbench-0.1.5.dist-info/METADATA": "Metadata-Version: 2.1\nName: vbench\nVersion: 0.1.5\n",
}


def write_packages(folder: Path) -> Path:
    """The packages, in a folder for PYTHONPATH."""
    for name, text in _FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
