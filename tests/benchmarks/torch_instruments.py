"""The instruments in PyTorch: BEC, re-activation, paths between models.

Re-activation and paths as a careful user writes them: byte tensors made floats
once, channels-last, no gradient of weights, nothing read back that is not
needed. BEC as published scripts do it: hooks that hand the maps of all channels
to host memory, model by model, and NumPy on what was collected. Pixels are in
[0, 1], networks see them normalized; nets are as `torch_reference` makes them.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.benchmarks import torch_reference

# Existence.


def compared_convs(net: nn.Module) -> dict[str, nn.Module]:
  """The convolutions of the stages, without stem and shortcuts, by name."""
  return {
    name: module
    for name, module in net.named_modules()
    if name.rpartition('.')[2] in ('conv1', 'conv2')
  }


@torch.no_grad()
def collect(net, images, pixels, batch_size: int = 250):
  """name -> maps [n, c, h, w] of all channels, in host memory."""
  net.eval()
  maps: dict[str, list[np.ndarray]] = {}

  def keep(name):
    return lambda module, inputs, output: maps.setdefault(name, []).append(
      output.detach().cpu().numpy()
    )

  convs = compared_convs(net).items()
  hooks = [module.register_forward_hook(keep(name)) for name, module in convs]
  for start in range(0, len(images), batch_size):
    x = pixels.from_bytes(images[start : start + batch_size])
    net(pixels.normalize(x))
  for hook in hooks:
    hook.remove()
  return {name: np.concatenate(parts) for name, parts in maps.items()}


def bec_reference(attacked, clean, triggered, images, pixels, p: float = 0.1):
  """name -> (channels that react most to the trigger, their features)."""
  before = collect(attacked, clean, pixels)
  after = collect(attacked, triggered, pixels)
  features = collect(attacked, images, pixels)
  reference = {}
  for name, maps in features.items():
    difference = after[name] - before[name]
    tac = np.sqrt((difference**2).sum((2, 3))).mean(0)
    chosen = np.argsort(-tac)[: max(1, int(p * len(tac)))]
    reference[name] = chosen, _flat(maps[:, chosen])
  return reference


def bec_similarity(net, reference, images, pixels) -> list[float]:
  """Linear CKA of each layer's chosen channels to the backdoored model's."""
  maps = collect(net, images, pixels)
  return [
    linear_cka(features, _flat(maps[name][:, chosen]))
    for name, (chosen, features) in reference.items()
  ]


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
  """Of features [n, d], by Grams: n is the smaller axis."""
  k, l = (_gram(z - z.mean(0)) for z in (x, y))
  return float((k * l).sum() / (np.linalg.norm(k) * np.linalg.norm(l)))


def _gram(x: np.ndarray) -> np.ndarray:
  return x @ x.T


def _flat(maps: np.ndarray) -> np.ndarray:
  return maps.reshape(len(maps), -1)


# Inversion.


def inversion_lanes(num_classes: int, images, hp) -> list:
  """For each class a free mask and pattern, and their Adam."""
  lanes = []
  for _ in range(num_classes):
    mask = torch.zeros_like(images[:1, :1]).requires_grad_()
    pattern = torch.zeros_like(images[:1]).requires_grad_()
    adam = torch.optim.Adam([mask, pattern], hp.lr, betas=(hp.b1, hp.b2))
    lanes.append((mask, pattern, adam))
  return lanes


def invert_step(net, lanes, images, pixels, hp) -> list:
  """One step towards each class in turn; how many images reach it."""
  net.eval().requires_grad_(False)
  hits = []
  for target, (free_mask, free_pattern, adam) in enumerate(lanes):
    mask, pattern = (v.tanh() / 2 + 0.5 for v in (free_mask, free_pattern))
    logits = net(pixels.normalize((1 - mask) * images + mask * pattern))
    wanted = torch.full((len(images),), target)
    loss = F.cross_entropy(logits, wanted) + hp.cost * mask.abs().sum()
    adam.zero_grad()
    loss.backward()
    adam.step()
    hits.append((logits.argmax(1) == target).sum())
  return hits


# Re-activation.


def white_box(net, images, targets, pixels, hp, delta=None):
  """Projected descent on one perturbation, L∞.

  Args:
    net: the defended model.
    images: triggered pool, uint8 [n, h, w, c].
    targets: int64 [n].
    pixels: normalization.
    hp: numbers of the attack.
    delta: start [1, c, h, w]; None = uniform.

  Returns:
    (delta, losses, rates), the latter before the steps on each batch.
  """
  net.eval().requires_grad_(False)
  images = pixels.from_bytes(images)
  if delta is None:
    delta = (torch.rand_like(images[:1]) * 2 - 1) * hp.eps
  losses, rates = [], []
  for _ in range(hp.outer_epochs):
    order = torch.randperm(len(images), device=images.device)
    for start in range(0, len(images) - hp.batch_size + 1, hp.batch_size):
      rows = order[start : start + hp.batch_size]
      batch, target = images[rows], targets[rows]
      for i in range(hp.inner_steps):
        delta.requires_grad_(True)
        logits = net(pixels.normalize((batch + delta).clamp(0, 1)))
        loss = reactivation_loss(logits, target, hp)
        (gradient,) = torch.autograd.grad(loss, delta)
        if i == 0:
          losses.append(loss.detach())
          rates.append((logits.detach().argmax(1) == target).float().mean())
        with torch.no_grad():
          delta = (delta - hp.lr * gradient).clamp(-hp.eps, hp.eps)
  return delta, torch.stack(losses), torch.stack(rates)


def reactivation_loss(logits, target, hp) -> torch.Tensor:
  """Cross-entropy to the target, and a push against the runner-up."""
  with torch.no_grad():
    others = logits.scatter(1, target[:, None], -torch.inf)
    rival = others.argmax(1, keepdim=True)
  p = logits.softmax(1).gather(1, rival)[:, 0]
  push = -torch.log(1.0001 - p + 1e-12)
  ce = F.cross_entropy(logits, target)
  return hp.weight_ce * ce + hp.weight_runner_up * push.mean()


@torch.inference_mode()
def square_search(
  net, images, targets, pixels, hp, start=None, propose=None, seed: int = 0
):
  """Random search in L∞ by scores; the whole pool in every query.

  Args:
    net: the defended model.
    images: triggered pool, uint8 [n, h, w, c].
    targets: int64 [n].
    pixels: normalization.
    hp: numbers of the attack.
    start: [1, c, h, w]; None = stripes.
    propose: (delta, i) -> delta; None = a random window.
    seed: of the draws.

  Returns:
    (delta, its loss, its rate, queries).
  """
  net.eval()
  rng = np.random.default_rng(seed)
  images = pixels.from_bytes(images)
  _, c, h, w = images.shape
  propose = propose or (
    lambda delta, i: square_candidate(
      rng, delta, square_side(i, hp, h, w), hp.eps
    )
  )
  if start is None:
    signs = rng.choice([-1.0, 1.0], (1, c, 1, w)).astype(np.float32)
    start = torch.from_numpy(signs).to(images.device) * hp.eps
    start = start.expand(1, c, h, w).clone()
  delta, best, rate = start, np.inf, 0.0
  for query in range(hp.num_queries):
    candidate = delta if query == 0 else propose(delta, query - 1)
    logits = net(pixels.normalize((images + candidate).clamp_(0, 1)))
    loss = F.cross_entropy(logits, targets, reduction='sum').item()
    if loss < best:
      delta, best = candidate, loss
      rate = (logits.argmax(1) == targets).float().mean().item()
      if rate > hp.stop_asr:
        break
  return delta, best, rate, query + 1


def square_side(i: int, hp, h: int, w: int) -> int:
  """Side of the window of proposal i; its area halves as the budget goes."""
  j = 10_000 * i // hp.num_queries
  halved = sum(
    j > after for after in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
  )
  side = round((hp.p_start / 2**halved * h * w) ** 0.5)
  return min(max(side, 1), min(h, w) - 1)


def square_candidate(rng, delta, side: int, eps: float) -> torch.Tensor:
  """Another content of one window, drawn until something changes."""
  _, c, h, w = delta.shape
  row, column = rng.integers(0, h - side + 1), rng.integers(0, w - side + 1)
  place = (..., slice(row, row + side), slice(column, column + side))
  candidate = delta.clone()
  while torch.equal(candidate[place], delta[place]):
    signs = rng.choice([-1.0, 1.0], (1, c, 1, 1)).astype(np.float32)
    candidate[place] = torch.from_numpy(signs).to(delta.device) * eps
  return candidate


# Paths.


@torch.no_grad()
def path(net, start, end, positions, batches, images, labels, pixels):
  """Rates of every point of a straight path, naive and recalibrated.

  Args:
    net: where the points are put.
    start: model at 0.
    end: model at 1.
    positions: floats.
    batches: float images in [0, 1], [n, b, c, h, w], for the statistics.
    images: uint8 [n, h, w, c].
    labels: int64 [n].
    pixels: normalization.

  Returns:
    A pair of rates per position.
  """
  a, b = start.state_dict(), end.state_dict()
  found = []
  for t in positions:
    net.load_state_dict(
      {
        name: torch.lerp(a[name], b[name], t)
        if a[name].is_floating_point()
        else a[name]
        for name in a
      }
    )
    naive = torch_reference.evaluate(net, images, labels, pixels, 0)
    recalibrate(net, batches, pixels)
    fresh = torch_reference.evaluate(net, images, labels, pixels, 0)
    found.append((naive, fresh))
  return found


@torch.no_grad()
def recalibrate(net, batches, pixels) -> None:
  """Running statistics as plain averages over the batches."""
  for module in net.modules():
    if isinstance(module, nn.BatchNorm2d):
      module.reset_running_stats()
      module.momentum = None  # a cumulative average
  net.train()
  for batch in batches:
    net(pixels.normalize(batch))
  net.eval()
