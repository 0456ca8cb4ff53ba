"""Makes the golden vectors: what PyTorch's nn.LSTM answers, step by step.

Run once with PyTorch (2.13.0, CPU, made the committed files); the suite only reads:

    python tests/golden/make_golden.py

lstm-<layers>.safetensors holds, for one nn.LSTM under a nn.Linear, both with weights at
PyTorch's default scale (float32):
  state dict     lstm.* and head.*, PyTorch's own keys
  x [T, I]       events (float32)
  steps [n]      the steps (of T) that are kept
  h.* c.* [n, layers, H], y.* [n, O]   after these steps, computed in float32 and float64
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

STEPS, INPUTS, UNITS, OUTPUTS = 1000, 3, 16, 2
KEPT = torch.tensor([*range(20), *range(39, STEPS, 20)])


class Net(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(INPUTS, UNITS, layers)
        self.head = nn.Linear(UNITS, OUTPUTS)


def events() -> torch.Tensor:
    """Standardised, with slow and fast parts and rare large values, like a sensor's."""
    t = torch.arange(STEPS).unsqueeze(1) / torch.tensor([150.0, 24.0, 7.0])
    spikes = 6 * (torch.rand(STEPS, INPUTS) < 0.01)
    return torch.sin(2 * torch.pi * t) + 0.5 * torch.randn(STEPS, INPUTS) + spikes


@torch.no_grad()
def answers(net: Net, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """h, c and y at the kept steps, one step at a time, in x's dtype."""
    net = net.to(x.dtype)
    state, kept = None, []
    for event in x:
        out, state = net.lstm(event.unsqueeze(0), state)
        kept.append((state[0], state[1], net.head(out[0])))
    h, c, y = (torch.stack([step[k] for step in kept])[KEPT] for k in range(3))
    return {"h": h, "c": c, "y": y}


def main() -> None:
    torch.set_num_threads(1)
    for layers in (1, 2, 3):
        torch.manual_seed(layers)
        net = Net(layers)
        tensors = {key: a.clone() for key, a in net.state_dict().items()}
        x = events()
        tensors |= {"x": x, "steps": KEPT}
        for name, dtype in (("f4", torch.float32), ("f8", torch.float64)):
            tensors |= {f"{k}.{name}": a for k, a in answers(net, x.to(dtype)).items()}
        save_file(
            tensors,
            Path(__file__).with_name(f"lstm-{layers}.safetensors"),
            metadata={"made by": f"make_golden.py, PyTorch {torch.__version__}"},
        )


if __name__ == "__main__":
    main()
