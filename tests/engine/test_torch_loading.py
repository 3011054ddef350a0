"""engine/torch_loading.py, in processes of their own: torch is loaded here already"""

import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_compilers_need_is_left_out_and_can_still_be_had() -> None:
    said = run(
        "import sys\n"
        "from engine.torch_loading import load_torch\n"
        "load_torch()\n"
        "name = 'torch._meta_registrations'\n"
        "import torch\n"
        "print(name in sys.modules, torch.ones(2).sum().item())\n"
        "import torch._meta_registrations\n"
        "from torch._subclasses.fake_tensor import FakeTensorMode\n"
        "with FakeTensorMode():\n"
        "    print(torch.cdist(torch.ones(3, 2), torch.ones(4, 2)).shape)\n"
    )
    assert said == "False 2.0\ntorch.Size([3, 4])\n"


def test_a_torch_that_is_loaded_stays_as_it_is() -> None:
    assert (
        run(
            "import sys, torch\n"
            "before = sys.modules['torch._meta_registrations']\n"
            "from engine.torch_loading import load_torch\n"
            "load_torch()\n"
            "print(sys.modules['torch._meta_registrations'] is before)\n"
        )
        == "True\n"
    )


def test_the_engine_does_without() -> None:
    """That it loads torch itself and not by an import, which would load all of it."""
    said = run("import sys, engine.worker, engine.listen, gateway.__main__\nprint('torch' in sys.modules)\n")
    assert said == "False\n"
