"""Every training loss: known small values, zeros where the paper says so, finite gradients, wrong weights refused."""

from __future__ import annotations

from dataclasses import astuple
from functools import partial
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from neuralcodec.errors import PackError  # noqa: E402
from neuralcodec.motion import euler_angles, rotation_matrix  # noqa: E402
from neuralcodec.quality import ms_ssim  # noqa: E402
from neuralcodec.training import losses  # noqa: E402
from neuralcodec.training.feature_networks import (  # noqa: E402
    _FACE_BLOCKS,
    _RECOGNITION_STAGES,
    FaceNetwork,
    RecognitionNetwork,
    Vgg19,
    read_weights,
)


def random_layer(
    tensors: dict[str, torch.Tensor], generator: torch.Generator, conv: str, norm: str, shape: tuple[int, ...]
) -> None:
    """A convolution without bias and the batch norm behind it, as their state dicts name them."""
    fan_in = shape[1] * shape[2] * shape[3]
    tensors[f"{conv}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
    for name, low in (("weight", 0.5), ("bias", -0.2), ("running_mean", -0.2), ("running_var", 0.5)):
        tensors[f"{norm}.{name}"] = low + torch.rand(shape[0], generator=generator)


@pytest.fixture(scope="module")
def face_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A face network file with the real layout and random numbers."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}

    layer = partial(random_layer, tensors, generator)
    layer("conv1", "bn1", (16, 3, 3, 3))
    channels = 16
    for name, out, _ in _FACE_BLOCKS:
        layer(f"{name}.conv_dw", f"{name}.bn_dw", (channels, 1, 3, 3))
        layer(f"{name}.conv_sep", f"{name}.bn_sep", (out, channels, 1, 1))
        channels = out
    tensors |= {"fc_param.weight": torch.randn(62, 512), "fc_param.bias": torch.zeros(62)}
    tensors |= {"param_mean": torch.zeros(62), "param_std": torch.ones(62)}
    path = tmp_path_factory.mktemp("weights") / "face.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def recognition_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recognition network file with the real layout and random numbers."""
    generator = torch.Generator().manual_seed(2)
    tensors: dict[str, torch.Tensor] = {}

    layer = partial(random_layer, tensors, generator)
    layer("conv1.0", "conv1.1", (64, 3, 3, 3))
    layer("dw_conv.depthwise", "dw_conv.bn1", (64, 1, 3, 3))
    layer("dw_conv.pointwise", "dw_conv.bn2", (64, 64, 1, 1))
    inside, index = 64, 0
    for channels, expansion, count, _ in _RECOGNITION_STAGES:
        for _ in range(count):
            key, wide = f"features.{index}.conv", inside * expansion
            layer(f"{key}.0.0", f"{key}.0.1", (wide, inside, 1, 1))
            layer(f"{key}.1.0", f"{key}.1.1", (wide, 1, 3, 3))
            layer(f"{key}.2", f"{key}.3", (channels, wide, 1, 1))
            inside, index = channels, index + 1
    layer("conv2.0", "conv2.1", (512, 128, 1, 1))
    layer("gdconv.depthwise", "gdconv.bn", (512, 1, 7, 7))
    layer("conv3", "bn", (128, 512, 1, 1))
    tensors["conv3.bias"] = torch.randn(128, generator=generator)
    path = tmp_path_factory.mktemp("weights") / "recognition.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def vgg_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(1)
    tensors, channels, index = {}, 3, 0
    for width in Vgg19.WIDTHS:
        if width:
            tensors[f"features.{index}.weight"] = (
                torch.randn(width, channels, 3, 3, generator=generator) * (2 / (9 * channels)) ** 0.5
            )
            tensors[f"features.{index}.bias"] = torch.zeros(width)
            channels = width
        index += 2 if width else 1
    path = tmp_path_factory.mktemp("weights") / "vgg19.pth"
    torch.save(tensors, path)
    return path


def pictures(seed: int, size: int = 64, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def face_points() -> torch.Tensor:
    return torch.rand(2, 30, 3, generator=torch.Generator().manual_seed(9)) - 0.5


def test_published_weights() -> None:
    assert astuple(losses.LossWeights())[:6] == (10, 1, 20, 10, 20, 5)


# networks


def test_folded_batch_norm_equals_batch_norm(face_weights: Path) -> None:
    network = FaceNetwork(face_weights)
    w = load_file(face_weights)
    x = pictures(3)
    plain = F.conv2d(x, w["conv1.weight"], stride=2, padding=1)
    norm = [w[f"bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    expected = F.batch_norm(plain, *norm)
    assert torch.allclose(network.layers["conv1"](x), expected, atol=1e-5)


def test_face_network_shapes_and_frozen(face_weights: Path) -> None:
    network = FaceNetwork(face_weights)
    features = network(pictures(0, 120))
    sizes = [(32, 60), (64, 30), (128, 15), (256, 8), (512, 4)]
    assert [tuple(f.shape[1:]) for f in features] == [(channels, side, side) for channels, side in sizes]
    assert network.parameters_3dmm(pictures(0, 120)).shape == (2, 62)
    network.train()
    assert not network.training and not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("size", [64, 256])
def test_face_feature_loss(face_weights: Path, size: int) -> None:
    loss = losses.FaceFeatureLoss(face_weights)
    target, points = pictures(0, size), face_points()
    assert float(loss(target, target, points)) == 0.0
    slight = loss((target + 0.02).clamp(0, 1), target, points)
    prediction = pictures(1, size).requires_grad_()
    strong = loss(prediction, target, points)
    assert 0 < float(slight) < float(strong.detach())
    strong.backward()
    gradient = prediction.grad
    assert gradient is not None and gradient.isfinite().all()
    inside, outside = gradient[..., size // 2, size // 2], gradient[..., 0, 0]  # the points lie in the middle half
    assert inside.abs().max() > 0 and float(outside.abs().max()) == 0.0


def test_face_square_is_the_keypoints_enlarged() -> None:
    points = torch.tensor([[[-0.2, 0.1, 9.0], [0.4, 0.3, -9.0]]])
    grid = losses.face_grid(points, 1.5)
    step = 0.9 / losses.FACE_CROP
    assert torch.allclose(grid[0, 0, 0], torch.tensor([0.1 - 0.45 + step / 2, 0.2 - 0.45 + step / 2]), atol=1e-5)
    assert torch.allclose(grid[0, -1, -1], torch.tensor([0.1 + 0.45 - step / 2, 0.2 + 0.45 - step / 2]), atol=1e-5)


def test_wrong_weight_files_are_refused(tmp_path: Path, vgg_weights: Path) -> None:
    with pytest.raises(PackError, match="no such weights file"):
        losses.FaceFeatureLoss(tmp_path / "none.safetensors")
    with pytest.raises(PackError, match="conv1.weight"):
        FaceNetwork(vgg_weights)
    for name in ("bad.safetensors", "bad.pth"):
        (tmp_path / name).write_bytes(b"not tensors at all")
        with pytest.raises(PackError, match=name):
            Vgg19(tmp_path / name)
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(PackError, match="vgg19"):
        Vgg19(tmp_path / "other.safetensors")
    torch.save({"epoch": 3, "conv1.weight": torch.ones(2)}, tmp_path / "whole.pth")
    with pytest.raises(PackError, match="whole.pth: holds the int 'epoch', expected a flat state dict"):
        FaceNetwork(tmp_path / "whole.pth")
    norm = {f"bn1.{name}": torch.ones(7) for name in ("weight", "bias", "running_mean", "running_var")}
    save_file({"conv1.weight": torch.ones(16, 3, 3, 3), **norm}, tmp_path / "wide.safetensors")
    with pytest.raises(PackError, match="wide.safetensors: tensors of other shapes; expected 3DDFA_V2's"):
        FaceNetwork(tmp_path / "wide.safetensors")


def test_an_old_file_of_weights_cut_anywhere_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(PackError, match="old.pth: not a file of tensors"):
            read_weights(path)


def test_vgg_layers_and_perceptual_loss(vgg_weights: Path) -> None:
    network = Vgg19(vgg_weights)
    x = pictures(0, 128, 1)
    features = network(x)
    assert [tuple(f.shape[1:]) for f in features] == [
        (64, 128, 128), (128, 64, 64), (256, 32, 32), (512, 16, 16), (512, 8, 8)]  # fmt: skip
    first = F.relu(
        F.conv2d((x - network.mean) / network.std, network.layers[0].weight, network.layers[0].bias, padding=1)
    )
    assert torch.allclose(features[0], first)
    loss = losses.PerceptualLoss(vgg_weights)
    assert float(loss(x, x)) == 0.0
    y = pictures(1, 128, 1).requires_grad_()
    value = loss(y, x)
    value.backward()
    assert y.grad is not None and y.grad.isfinite().all() and y.grad.abs().max() > 0
    terms = [F.l1_loss(found, wanted) for found, wanted in zip(network(y.detach()), features, strict=True)]
    one_scale = float(sum(w * term for w, term in zip(losses.VGG_WEIGHTS, terms, strict=True)))
    assert float(losses.PerceptualLoss(vgg_weights, scales=1)(y.detach(), x)) == pytest.approx(one_scale, rel=1e-5)
    value = value.detach()
    assert float(value) > one_scale > 0


# pictures


def test_gradient_loss_ignores_brightness_and_sees_edges() -> None:
    x = pictures(0)
    assert float(losses.gradient_loss(x + 0.3, x)) == pytest.approx(0.0, abs=1e-6)
    ramp = torch.linspace(0, 1, 17)[:16].expand(1, 1, 16, 16)  # steps of 1/16 across, 0 down; doubled at each halving
    flat = torch.zeros_like(ramp)
    assert float(losses.gradient_loss(ramp, flat, scales=1)) == pytest.approx(1 / 32)
    assert float(losses.gradient_loss(ramp, flat, scales=2)) == pytest.approx((1 / 32 + 2 / 32) / 2)


def test_hinge_values() -> None:
    assert float(losses.discriminator_hinge(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0]))) == pytest.approx(0.75)
    assert float(losses.discriminator_hinge(torch.tensor([1.0]), torch.tensor([-1.0]))) == 0.0
    assert float(losses.generator_hinge(torch.tensor([1.0, 3.0]))) == -2.0


def test_feature_matching_leaves_the_real_side_alone() -> None:
    real = [torch.ones(2, 3, requires_grad=True), torch.zeros(4, requires_grad=True)]
    rendered = [torch.zeros(2, 3, requires_grad=True), torch.full((4,), 3.0, requires_grad=True)]
    value = losses.feature_matching(rendered, real)
    value.backward()
    assert float(value.detach()) == 2.0  # (1 + 3) / 2
    assert real[0].grad is None and rendered[0].grad is not None
    with pytest.raises(ValueError):
        losses.feature_matching(rendered, real[:1])


# equivariance


def still(batch: int = 2) -> losses.RandomWarp:
    return losses.RandomWarp(torch.eye(2, 3).expand(batch, 2, 3), torch.zeros(batch, 25))


def test_identity_warp_changes_nothing() -> None:
    x, points = pictures(0, 33), face_points()
    assert torch.allclose(still().image(x), x, atol=1e-5)
    assert float(losses.equivariance_loss(points, points, still())) == pytest.approx(0.0, abs=1e-7)


def test_equivariance_ignores_depth_and_measures_xy() -> None:
    points = face_points()
    moved = points + torch.tensor([0.1, -0.3, 5.0])
    assert float(losses.equivariance_loss(moved, points, still())) == pytest.approx(0.2, abs=1e-6)


def test_a_dot_in_the_warped_picture_maps_back_to_where_it_was() -> None:
    warp = losses.RandomWarp.sample(1, generator=torch.Generator().manual_seed(5))
    size = 129
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")

    def centre(picture: torch.Tensor) -> torch.Tensor:
        total = picture.sum()
        return torch.stack([(picture * x).sum() / total, (picture * y).sum() / total]).reshape(1, 1, 2)

    place = torch.tensor([0.21, -0.33])
    dot = torch.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * 0.04**2))[None, None]
    seen = centre(warp.image(dot)[0, 0])
    assert float((seen - place).abs().max()) > 0.01  # it moved
    assert torch.allclose(warp.points(seen)[0, 0], place, atol=2e-3)
    padded = F.pad(seen, (0, 1))
    assert float(losses.equivariance_loss(torch.tensor([[[0.21, -0.33, 0.0]]]), padded, warp)) < 2e-3


def test_random_warps_are_small_and_repeatable() -> None:
    a, b = (losses.RandomWarp.sample(200, generator=torch.Generator().manual_seed(6)) for _ in range(2))
    assert torch.equal(a.affine, b.affine) and torch.equal(a.bend, b.bend)
    assert float((a.affine - torch.eye(2, 3)).std()) == pytest.approx(0.05, rel=0.1)
    assert float(a.bend.std()) == pytest.approx(0.005, rel=0.1)
    points = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [-1.0, 1.0]]]).expand(200, 3, 2).clone().requires_grad_()
    a.points(points).sum().backward()  # control points lie exactly here: the logarithm must not blow up
    assert points.grad is not None and points.grad.isfinite().all()


# keypoints, pose, expression


def test_keypoint_prior_values() -> None:
    apart = torch.tensor([[[0.0, 0.0, 0.33], [0.5, 0.0, 0.33]]])
    assert float(losses.keypoint_prior(apart)) == pytest.approx(0.0, abs=1e-6)
    close = torch.tensor([[[0.0, 0.0, 0.0], [0.2, 0.0, 0.0]]])  # squared distance 0.04: both orders count
    assert float(losses.keypoint_prior(close)) == pytest.approx(2 * 0.06 + 0.33)
    assert float(losses.keypoint_prior(close, depth=None)) == pytest.approx(2 * 0.06)
    same = torch.zeros(1, 20, 3, requires_grad=True)
    losses.keypoint_prior(same).backward()
    assert same.grad is not None and same.grad.isfinite().all()


def test_euler_degrees_equal_the_codecs_own() -> None:
    for angles in ((20.0, -35.0, 12.0), (-70.0, 60.0, -80.0), (0.0, 0.0, 0.0)):
        rotation = rotation_matrix(*angles)
        found = losses.euler_degrees(torch.from_numpy(rotation)[None])[0]
        np.testing.assert_allclose(found.numpy(), euler_angles(rotation), atol=1e-2)
        np.testing.assert_allclose(found.numpy(), angles, atol=1e-2)


def test_head_pose_loss_in_degrees_and_only_where_found() -> None:
    a = torch.from_numpy(np.stack([rotation_matrix(10, 0, 0), rotation_matrix(0, 0, 0)]))
    b = torch.from_numpy(np.stack([rotation_matrix(4, 3, 0), rotation_matrix(90, 0, 0)]))
    assert float(losses.head_pose_loss(a, b, torch.tensor([True, False]))) == pytest.approx(3.0, abs=1e-2)
    assert float(losses.head_pose_loss(a, b, torch.tensor([False, False]))) == 0.0
    assert float(losses.head_pose_loss(a, b)) == pytest.approx((3 + 30) / 2, abs=1e-2)
    straight_down = torch.from_numpy(rotation_matrix(0, 90, 0))[None].clone().requires_grad_()
    losses.head_pose_loss(straight_down, torch.eye(3)[None]).backward()
    assert straight_down.grad is not None and straight_down.grad.isfinite().all()


def test_expression_loss() -> None:
    assert float(losses.expression_loss(torch.tensor([[[1.0, -2.0, 0.0]]]))) == 1.0


def test_landmark_loss_weights_points_axes_and_pictures() -> None:
    labels = torch.zeros(2, 3, 3)
    found = torch.tensor([True, False])
    keypoints = torch.zeros(2, 3, 3)
    keypoints[0, 0, 0], keypoints[0, 2, 2], keypoints[1] = 0.3, 9.0, 100.0
    weights = torch.tensor([[2.0, 2.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])  # z carries no weight
    assert float(losses.landmark_loss(keypoints, labels, weights, found)) == pytest.approx(0.6 / 8)
    assert float(losses.landmark_loss(keypoints, labels, torch.tensor([1.0, 0.0, 0.0]), found)) == pytest.approx(0.1)
    assert float(losses.landmark_loss(keypoints, labels, torch.zeros(3), found)) == 0.0


@pytest.mark.parametrize("side", [256, 128])
def test_ms_ssim_loss_is_the_codecs_own_figure(side: int) -> None:
    random = np.random.default_rng(0)
    a = random.integers(0, 256, (3, side, side, 3)).astype(np.uint8)
    b = (0.7 * a + random.integers(0, 60, a.shape)).astype(np.uint8)
    there, here = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 for x in (a, b))
    here.requires_grad_()
    loss = losses.ms_ssim_loss(here, there)
    wanted = np.mean([ms_ssim(x, y) for x, y in zip(a, b, strict=True)])
    assert 1 - float(loss.detach()) == pytest.approx(wanted, abs=1e-5)
    loss.backward()
    assert torch.isfinite(here.grad).all() and here.grad.abs().sum() > 0
    assert float(losses.ms_ssim_loss(there, there)) == pytest.approx(0, abs=1e-5)


def test_a_face_is_brought_to_where_recognition_looks() -> None:
    """The sampling grid is a similarity; at the places of its five points it gives the points."""
    wanted = torch.tensor(losses.RECOGNITION_POINTS)
    turn = torch.tensor([[0.8, 0.6], [-0.6, 0.8]]) * 0.004
    points = torch.stack([wanted @ turn + torch.tensor([-0.3, 0.1]), wanted * 0.006 - 0.2])
    grid = losses.recognition_grid(points)
    right, down = grid[:, 0, 1] - grid[:, 0, 0], grid[:, 1, 0] - grid[:, 0, 0]
    found = grid[:, :1, 0] + wanted[None, :, :1] * right[:, None] + wanted[None, :, 1:] * down[:, None]
    assert torch.allclose(found, points, atol=1e-5)


def test_identity_loss(recognition_weights: Path) -> None:
    """0 for the same face, more for others, and a step along its gradient brings a face nearer."""
    loss = losses.IdentityLoss(recognition_weights)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 3, 256, 256, generator=generator) for _ in range(2))
    points = (torch.tensor(losses.RECOGNITION_POINTS) / 56 - 1).expand(2, -1, -1)
    assert float(loss(a, a, points)) == pytest.approx(0, abs=1e-5)
    b.requires_grad_()
    apart = loss(b, a, points)
    apart.backward()
    apart = apart.detach()
    assert 0 < float(apart) < 2
    nearer = loss(b.detach() - 1e-2 * b.grad / b.grad.norm() * 256, a, points)
    assert float(nearer) < float(apart)
    vectors = loss.network(torch.rand(2, 3, 112, 112, generator=generator))
    assert vectors.shape == (2, 128) and torch.allclose(vectors.norm(dim=1), torch.ones(2))


def test_other_files_are_no_recognition_network(face_weights: Path) -> None:
    with pytest.raises(PackError, match="foamliu/MobileFaceNet"):
        RecognitionNetwork(face_weights)
