"""Write tests/golden/torch/: small files as PyTorch writes them, and their arrays. Needs torch (2.13 wrote those that are here).

python tests/golden/make_torch_files.py
"""

from argparse import Namespace
from collections import OrderedDict
from pathlib import Path, PurePosixPath

import numpy as np
import safetensors.torch
import torch
from torch import nn

FOLDER = Path(__file__).parent / "torch"
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def numpy(tensor):
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def plain():
    base = torch.randn(5, 6)
    state = OrderedDict((name, (3 * torch.randn(2, 3)).to(getattr(torch, name))) for name in DTYPES)
    state |= network().state_dict(prefix="net.")
    state["parameter"] = nn.Parameter(torch.randn(3))
    state["base"], state["shared"] = base, base[1:4]
    state["transposed"], state["strided"], state["expanded"] = base.T, base[1::2, 5], base[:, :1].expand(5, 3)
    state["channels_last"] = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state["zero_dim"], state["empty"], state["empty_view"] = torch.tensor(2.5), torch.empty(0, 3), base[5:]
    state["bfloat16_column"] = torch.randn(4, 3).bfloat16()[:, 1]
    state["bfloat16_special"] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 3e38, 1e-40]).bfloat16()
    return state


def lightning():
    """Write a compiled network of half precision as Lightning does, with the hyper-parameters that it was called with."""
    torch.manual_seed(1)
    net = network()
    net[0] = torch.compile(net[0])
    weights = {f"model.{name}": value.half() if value.ndim else value for name, value in torch.compile(net).state_dict().items()}
    parameters = {
        "args": Namespace(lr=0.1, folder=PurePosixPath("data"), device=torch.device("cpu"), dtype=torch.float16),
        "numpy": [np.float64(0.5), np.arange(3), np.random.RandomState(0)],
        "head": nn.Linear(2, 2),
        "activation": nn.functional.relu,
        "schedule": torch.optim.lr_scheduler.CosineAnnealingLR,
    }
    torch.save({"epoch": 3, "state_dict": weights, "hyper_parameters": parameters}, FOLDER / "lightning.ckpt")
    np.savez_compressed(FOLDER / "lightning.npz", **{name: numpy(value) for name, value in weights.items()})
    weights = {name: value.bfloat16() if value.ndim else value for name, value in weights.items()}
    safetensors.torch.save_file(weights, FOLDER / "bfloat16.safetensors", metadata={"format": "pt"})
    np.savez_compressed(FOLDER / "bfloat16.npz", **{name: numpy(value) for name, value in weights.items()})


def main():
    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    state = plain()
    net = network()
    net(torch.randn(7, 3, 3, 3))
    torch.save(state, FOLDER / "plain.pt")
    np.savez_compressed(FOLDER / "plain.npz", **{name: numpy(value) for name, value in state.items()})

    weights = {f"backbone.{name}": value for name, value in net.state_dict().items()}
    extras = {"epoch": 3, "global_step": 70, "pytorch-lightning_version": "1.9.5", "loops": {"done": True, "best": None, "lr": [0.1, 0.01]}}
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.randn(7, 3, 3, 3)).sum().backward()
    optimizer.step()
    torch.save({"state_dict": OrderedDict(weights), "optimizer_states": [optimizer.state_dict()], **extras}, FOLDER / "solo.ckpt")
    np.savez_compressed(FOLDER / "solo.npz", **{name: numpy(value) for name, value in weights.items()})

    images = torch.randn(2, 3, 2, 2)
    torch.save(images, FOLDER / "bare.pt")
    np.savez_compressed(FOLDER / "bare.npz", images=numpy(images))
    torch.save({"images": images, "size": images.shape}, FOLDER / "protocol4.pt", pickle_protocol=4)
    torch.save({"images": images}, FOLDER / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.jit.script(nn.Linear(2, 1)).save(FOLDER / "script.pt")
    lightning()


if __name__ == "__main__":
    main()
