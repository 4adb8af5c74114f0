"""The same work in PyTorch, as a careful user writes it and as is common.

Needs torch (`pip install "bdjax[bench]"`). Images are uint8 NumPy arrays
[n, h, w, c]; networks take normalized float tensors [n, c, h, w], in memory
channels-last. All numbers of the recipe are those of our side.
"""

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils import data as torch_data

LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4
PADDING = 4


class Block(nn.Module):
  def __init__(self, before: int, features: int, stride: int):
    super().__init__()
    self.bn1 = nn.BatchNorm2d(before)
    self.conv1 = nn.Conv2d(before, features, 3, stride, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(features)
    self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
    self.shortcut = None
    if stride != 1 or before != features:
      self.shortcut = nn.Conv2d(before, features, 1, stride, bias=False)

  def forward(self, x):
    active = F.relu(self.bn1(x))
    rest = x if self.shortcut is None else self.shortcut(active)
    out = self.conv2(F.relu(self.bn2(self.conv1(active))))
    return out + rest


class PreActResNet18(nn.Module):
  def __init__(self, num_classes: int, width: int):
    super().__init__()
    self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
    blocks, before = [], width
    for stage in range(4):
      features = width * 2**stage
      for block in range(2):
        stride = 2 if stage > 0 and block == 0 else 1
        blocks.append(Block(before, features, stride))
        before = features
    self.blocks = nn.Sequential(*blocks)
    self.head = nn.Linear(before, num_classes)

  def forward(self, x):
    return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Tiny(nn.Module):
  def __init__(self, num_classes: int, width: int):
    super().__init__()
    self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    self.conv2 = nn.Conv2d(width, 2 * width, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(2 * width)
    self.head = nn.Linear(2 * width, num_classes)

  def forward(self, x):
    x = F.relu(self.bn1(self.conv1(x)))
    return self.head(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


NETS = {'preactresnet18': PreActResNet18, 'tiny': Tiny}


def make_net(
  arch: str,
  num_classes: int,
  width: int,
  device: str = 'cpu',
  memory_format: torch.memory_format = torch.channels_last,
) -> nn.Module:
  net = NETS[arch](num_classes, width)
  return net.to(device, memory_format=memory_format)


def make_optimizer(net: nn.Module) -> torch.optim.Optimizer:
  """SGD; torch adds the decay to the gradient before the momentum."""
  return torch.optim.SGD(
    net.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
  )


def train_step(net, optimizer, images, labels) -> torch.Tensor:
  """One update on normalized images; returns the loss before it."""
  net.train()
  optimizer.zero_grad(set_to_none=True)
  loss = F.cross_entropy(net(images), labels)
  loss.backward()
  optimizer.step()
  return loss.detach()


class Pixels:
  """Normalization and a 3×3 white patch, on tensors [n, c, h, w] in [0, 1]."""

  def __init__(self, spec, device: str = 'cpu'):
    shape = (1, -1, 1, 1)
    self.mean = torch.tensor(spec.mean, device=device).reshape(shape)
    self.std = torch.tensor(spec.std, device=device).reshape(shape)

  def from_bytes(self, images: torch.Tensor) -> torch.Tensor:
    """uint8 [n, h, w, c] to floats; the permuted view is channels-last."""
    return images.permute(0, 3, 1, 2).float() / 255

  def normalize(self, images: torch.Tensor) -> torch.Tensor:
    return (images - self.mean) / self.std

  @staticmethod
  def stamp(images: torch.Tensor) -> torch.Tensor:
    images = images.clone(memory_format=torch.preserve_format)
    images[:, :, -3:, -3:] = 1.0
    return images


def poison(images: np.ndarray, labels: np.ndarray, indices, target: int):
  """Patched copies of images and labels; poisoning precedes training."""
  images, labels = images.copy(), labels.copy()
  images[indices, -3:, -3:] = 255
  labels[indices] = target
  return images, labels


def crop_flip(images: torch.Tensor) -> torch.Tensor:
  """Padded random crop and flip per example, vectorized; [n, c, h, w]."""
  n, c, h, w = images.shape
  device = images.device
  padded = F.pad(images, (PADDING,) * 4)
  offset = torch.randint(0, 2 * PADDING + 1, (2, n, 1), device=device)
  rows = offset[0] + torch.arange(h, device=device)
  columns = offset[1] + torch.arange(w, device=device)
  flip = torch.rand(n, 1, device=device) < 0.5
  columns = torch.where(flip, columns.flip(1), columns)
  example = torch.arange(n, device=device)[:, None, None]
  # Advanced indices in front: the gather moves whole pixels of the
  # channels-last tensor, and its result is channels-last again.
  pixels = padded.permute(0, 2, 3, 1)
  out = pixels[example, rows[:, :, None], columns[:, None, :]]
  return out.permute(0, 3, 1, 2)


def careful_epoch(net, optimizer, images, labels, pixels, batch_size) -> float:
  """One epoch over byte tensors that stay in memory; returns the mean loss."""
  order = torch.randperm(len(images), device=images.device)
  total, steps = torch.zeros((), device=images.device), 0
  for start in range(0, len(images) - batch_size + 1, batch_size):
    rows = order[start : start + batch_size]
    batch = crop_flip(pixels.from_bytes(images[rows]))
    total += train_step(net, optimizer, pixels.normalize(batch), labels[rows])
    steps += 1
  return float(total) / steps


class PictureDataset(torch_data.Dataset):
  """PIL images with transforms one by one, as benchmarks of the field do."""

  def __init__(self, images: np.ndarray, labels: np.ndarray, spec):
    self.pictures = [Image.fromarray(image) for image in images]
    self.labels = labels
    self.mean = torch.tensor(spec.mean).reshape(-1, 1, 1)
    self.std = torch.tensor(spec.std).reshape(-1, 1, 1)

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, i):
    picture = self._crop_flip(self.pictures[i])
    array = np.array(picture, np.uint8)
    image = torch.from_numpy(array).permute(2, 0, 1).contiguous()
    image = image.float().div(255)
    return image.sub(self.mean).div(self.std), int(self.labels[i])

  @staticmethod
  def _crop_flip(picture):
    w, h = picture.size
    padded = Image.new('RGB', (w + 2 * PADDING, h + 2 * PADDING))
    padded.paste(picture, (PADDING, PADDING))
    x, y = torch.randint(0, 2 * PADDING + 1, (2,)).tolist()
    picture = padded.crop((x, y, x + w, y + h))
    if torch.rand(()) < 0.5:
      picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture


def picture_loader(images, labels, spec, batch_size, workers: int):
  return torch_data.DataLoader(
    PictureDataset(images, labels, spec),
    batch_size=batch_size,
    shuffle=True,
    drop_last=True,
    num_workers=workers,
    persistent_workers=workers > 0,
  )


def picture_epoch(net, optimizer, loader, device: str = 'cpu') -> float:
  """One epoch over a DataLoader of pictures; the layout is that of the net."""
  total, steps = 0.0, 0
  for images, labels in loader:
    images, labels = images.to(device), labels.to(device)
    # Such loops read the loss of every step.
    total += train_step(net, optimizer, images, labels).item()
    steps += 1
  return total / steps


@torch.inference_mode()
def evaluate(
  net, images, labels, pixels, target: int, batch_size: int = 256
) -> tuple[float, float, float]:
  """C-Acc, ASR and R-Acc of byte tensors, one clean and one stamped pass."""
  net.eval()
  device = images.device
  hits = torch.zeros(4, dtype=torch.int64, device=device)
  for start in range(0, len(images), batch_size):
    y = labels[start : start + batch_size]
    x = pixels.from_bytes(images[start : start + batch_size])
    clean = net(pixels.normalize(x)).argmax(1)
    other = y != target
    if other.any():
      x = pixels.stamp(x[other])
      stamped = net(pixels.normalize(x)).argmax(1)
      hits[1] += (stamped == target).sum()
      hits[2] += (stamped == y[other]).sum()
      hits[3] += other.sum()
    hits[0] += (clean == y).sum()
  c, a, r, n = hits.tolist()
  return c / len(images), a / max(n, 1), r / max(n, 1)
