"""The `paper` preset: published sizes, geometry against numpy and against direct formulas, one real forward pass."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from neuralcodec.models import ModelConfig, MotionOutput, Networks, build  # noqa: E402
from neuralcodec.models.convnext import UnifiedMotion  # noqa: E402
from neuralcodec.models.discriminator import Discriminator  # noqa: E402
from neuralcodec.models.extractor import (  # noqa: E402
    AntiAliasedShrink,
    CanonicalKeypoints,
    Estimate,
    HeadPose,
    MiddleOfFour,
    PaperMotion,
    PoseExpression,
    Trunk,
    rotation_from_degrees,
    shrinking,
    soft_argmax,
)
from neuralcodec.models.layers import ConvNorm, coordinate_grid, gaussians, grid_sample_3d, upsample  # noqa: E402
from neuralcodec.models.synthesis import (  # noqa: E402
    AppearanceFeatures,
    MotionField,
    OriginalHead,
    PaperRenderer,
    SpadeHead,
    WarpedFeatures,
)
from neuralcodec.motion import MotionParams, rotation_matrix  # noqa: E402

PAPER = ModelConfig.preset("paper")
UNNORMED = ModelConfig.preset("paper", spectral_norm=False)  # the device "meta" takes its time over spectral norms


def millions(module: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


# sizes: names of the table are the paper's boxes, the second column is what is printed about them


@pytest.mark.parametrize(
    ("module", "changes", "printed"),
    [
        (AppearanceFeatures, {}, "0.84"),
        (CanonicalKeypoints, {}, "41.9"),
        (PoseExpression, {}, "30.3"),
        (MotionField, {}, "44.1"),
        (MotionField, {"keypoints": 15}, "43.5"),
        (MotionField, {"keypoints": 21}, "44.3"),
        (WarpedFeatures, {}, "1.25"),
        (OriginalHead, {}, "7.5"),
    ],
)
def test_published_sizes(module: type, changes: dict, printed: str) -> None:
    with torch.device("meta"):
        size = millions(module(ModelConfig.preset("paper", **changes)))
    digits = len(printed.split(".")[1])
    assert f"{size:.{digits}f}" == printed


@pytest.mark.parametrize(("shuffle", "printed"), [(False, "55.36"), (True, "55.37")])
def test_size_of_spade_heads(shuffle: bool, printed: str) -> None:
    # With its spectral norms, which take three times as long on the device "meta" as with real numbers.
    assert f"{millions(SpadeHead(PAPER, shuffle=shuffle)):.2f}" == printed


def test_sizes_of_the_unified_variant() -> None:
    config = ModelConfig.community("liveportrait")
    with torch.device("meta"):
        renderer = PaperRenderer(config)
        assert f"{millions(UnifiedMotion(config)):.2f}" == "28.12"
        assert f"{millions(renderer.motion_field) + millions(renderer.warped):.2f}" == "45.53"


def test_split_trunks_double_the_trunk_only() -> None:
    with torch.device("meta"):
        shared, split = (PoseExpression(ModelConfig.preset("paper", motion_trunk=name)) for name in ("shared", "split"))
    assert millions(split) == pytest.approx(millions(shared) + millions(shared.trunk))


def test_every_named_configuration_builds() -> None:
    with torch.device("meta"):
        for name in ("zhanglonghao", "zhanglonghao-beta", "sadtalker", "gfvc", "liveportrait"):
            assert isinstance(build(ModelConfig.community(name)), Networks)
        assert isinstance(build(PAPER), Networks)


# configuration


def test_configuration_round_trip_and_refusals() -> None:
    config = ModelConfig.preset("paper", keypoints=15, head="spade")
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert (PAPER.keypoints, PAPER.size, PAPER.flow_rotation) == (20, 256, True)
    assert ModelConfig.preset("portrait").keypoints == 30
    with pytest.raises(ValueError, match="papper.*paper, portrait"):
        ModelConfig.preset("papper")
    with pytest.raises(ValueError, match="colour"):
        ModelConfig.from_dict({"name": "paper", "colour": 3})
    with pytest.raises(ValueError, match="unified"), torch.device("meta"):
        PaperMotion(ModelConfig.preset("paper", scale=True))
    with pytest.raises(ValueError, match="whole number"):
        AntiAliasedShrink(0.3)


# sampling


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_flat_sampling_equals_volumetric(align_corners: bool, padding: str) -> None:
    generator = torch.Generator().manual_seed(1)
    volume = torch.rand(2, 3, 16, 24, 20, generator=generator) * 2 - 1
    grid = torch.rand(2, 5, 17, 13, 3, generator=generator) * 3 - 1.5  # a third of it outside
    expected = grid_sample_3d(volume, grid, True, align_corners, padding)
    found = grid_sample_3d(volume, grid, False, align_corners, padding)
    assert expected.shape == found.shape == (2, 3, 5, 17, 13)
    assert (expected - found).abs().max() <= 1e-4
    assert expected.std() > 0.1


@pytest.mark.parametrize("align_corners", [True, False])
def test_flat_sampling_on_edges_and_corners(align_corners: bool) -> None:
    volume = torch.rand(1, 2, 16, 64, 64, generator=torch.Generator().manual_seed(2))
    marks = torch.tensor([-2.0, -1 - 1 / 64, -1.0, -1 + 1 / 64, 0.0, 1 - 1 / 64, 1.0, 1 + 1 / 64, 2.0])
    grid = torch.stack(torch.meshgrid(marks, marks, marks, indexing="ij"), -1)[None]
    for padding in ("zeros", "border"):
        expected = grid_sample_3d(volume, grid, True, align_corners, padding)
        found = grid_sample_3d(volume, grid, False, align_corners, padding)
        assert (expected - found).abs().max() <= 1e-4


def test_flat_sampling_has_the_same_gradients() -> None:
    generator = torch.Generator().manual_seed(3)
    volume = torch.rand(1, 2, 4, 6, 5, generator=generator, dtype=torch.float64)
    grid = torch.rand(1, 3, 4, 5, 3, generator=generator, dtype=torch.float64) * 2.4 - 1.2
    gradients = []
    for volumetric in (True, False):
        v, g = volume.clone().requires_grad_(), grid.clone().requires_grad_()
        grid_sample_3d(v, g, volumetric).square().sum().backward()
        gradients.append((v.grad, g.grad))
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_what_community_checkpoints_do_otherwise_is_what_torch_calls_it() -> None:
    generator = torch.Generator().manual_seed(4)
    volume = torch.rand(2, 3, 4, 6, 5, generator=generator)
    wanted = torch.nn.functional.interpolate(volume, scale_factor=(1, 2, 2), mode="trilinear", align_corners=False)
    assert torch.allclose(upsample(volume, "trilinear"), wanted, atol=1e-6)
    picture = torch.rand(2, 3, 16, 24, generator=generator)[..., :16]
    wanted = torch.nn.functional.interpolate(picture, scale_factor=0.25, mode="bilinear", align_corners=False)
    assert torch.allclose(MiddleOfFour()(picture), wanted, atol=1e-6)
    stepped = ConvNorm(3, 4, dims=3, pool=2, stride=True)
    assert stepped(volume).shape == (2, 4, 4, 3, 3) and stepped.conv.stride == (1, 2, 2)
    trunk = Trunk("projecting")
    assert [type(stage).__name__ for stage in trunk.stages] == ["Bottleneck"] * 17
    assert trunk(torch.rand(1, 3, 64, 64, generator=generator)).shape == (1, 2048)
    with pytest.raises(ValueError, match="a quarter only"):
        shrinking(ModelConfig.community("zhengkw", keypoint_input_scale=0.5))


def test_gaussians_against_the_plain_formula() -> None:
    points = torch.tensor([[[0.3, -0.2, 0.5], [-1.0, 1.0, 0.0]]])
    grid = coordinate_grid(4, 5, 6, points)
    expected = torch.exp(-0.5 * (grid - points[:, :, None, None, None]).square().sum(-1) / 0.01)
    assert torch.allclose(gaussians(points, (4, 5, 6), 0.01), expected, atol=1e-6)
    flat = torch.exp(-0.5 * (grid[0, ..., :2] - points[:, :, None, None, :2]).square().sum(-1) / 0.2)
    assert torch.allclose(gaussians(points[..., :2], (5, 6), 0.2), flat, atol=1e-6)


# motion


def test_soft_argmax_finds_a_sharp_peak_and_a_midpoint() -> None:
    heat = torch.zeros(1, 2, 5, 9, 17)
    heat[0, 0, 4, 2, 12] = 10.0
    heat[0, 1, 0, 0, 0] = heat[0, 1, 4, 8, 16] = 10.0
    found = soft_argmax(heat, 0.1)
    assert torch.allclose(found[0, 0], torch.tensor([0.5, -0.5, 1.0]), atol=1e-5)
    assert torch.allclose(found[0, 1], torch.zeros(3), atol=1e-5)


@pytest.mark.parametrize("euler", ["xyz", "zyx", "beta"])
def test_rotations_are_rotations(euler: str) -> None:
    angles = torch.tensor([[30.0, -20.0, 10.0], [0.0, 0.0, 0.0]])
    r = rotation_from_degrees(angles, ModelConfig.preset("paper", euler=euler))
    assert torch.allclose(r @ r.transpose(1, 2), torch.eye(3).expand(2, 3, 3), atol=1e-6)
    assert torch.allclose(torch.linalg.det(r), torch.ones(2), atol=1e-6)
    assert torch.allclose(r[1], torch.eye(3))


def test_rotation_orders_differ_and_match_single_axes() -> None:
    turns = {euler: ModelConfig.preset("paper", euler=euler) for euler in ("xyz", "zyx", "beta")}
    mixed = torch.tensor([[25.0, 15.0, -35.0]])
    found = [rotation_from_degrees(mixed, config) for config in turns.values()]
    assert all((a - b).abs().max() > 0.05 for a, b in zip(found, found[1:] + found[:1], strict=True))
    nose = torch.tensor([[[0.0, 0.0, -1.0]]])
    yaw = nose @ rotation_from_degrees(torch.tensor([[90.0, 0.0, 0.0]]), turns["xyz"])  # column Ry(90) takes -z to -x
    assert torch.allclose(yaw, torch.tensor([[[-1.0, 0.0, 0.0]]]), atol=1e-6)
    ours = torch.from_numpy(rotation_matrix(-40.0, 0.0, 0.0))  # ours turns the nose to +x for positive yaw
    assert torch.allclose(rotation_from_degrees(torch.tensor([[40.0, 0.0, 0.0]]), turns["xyz"])[0], ours, atol=1e-6)


def test_old_value_of_pi_changes_the_angle() -> None:
    exact = rotation_from_degrees(torch.tensor([[90.0, 0.0, 0.0]]), PAPER)[0, 0, 0]
    old = rotation_from_degrees(torch.tensor([[90.0, 0.0, 0.0]]), ModelConfig.preset("paper", pi=3.14))[0, 0, 0]
    assert abs(float(exact)) < 1e-6
    assert float(old) == pytest.approx(math.cos(1.57), abs=1e-6)


def _pose_head(**changes: object) -> HeadPose:
    head = HeadPose(4, ModelConfig.preset("paper", **changes))
    for layer, peak in ((head.yaw, 40), (head.pitch, 33), (head.roll, 20)):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        layer.bias.data[peak] = 60.0
    torch.nn.init.zeros_(head.translation.weight)
    head.translation.bias.data[:] = torch.tensor([0.1, 0.2, 0.3])
    return head


@pytest.mark.parametrize(
    ("changes", "angles", "translation"),
    [
        ({}, [21.0, 0.0, -39.0], [0.1, 0.2, 0.3]),
        ({"angle_offset": 97.5, "translation_mask": "xy"}, [22.5, 1.5, -37.5], [0.1, 0.2, 0.0]),
        ({"swap_yaw_roll": True, "translation_mask": "y"}, [-39.0, 0.0, 21.0], [0.0, 0.2, 0.0]),
    ],
)
def test_pose_bins(changes: dict, angles: list[float], translation: list[float]) -> None:
    found, t = _pose_head(**changes)(torch.zeros(1, 4))
    assert torch.allclose(found[0], torch.tensor(angles), atol=1e-4)
    assert torch.allclose(t[0], torch.tensor(translation))


class _Fixed(torch.nn.Module):
    """Stands for a trained H, Delta or L: the same answer for every picture."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, image: torch.Tensor) -> object:  # noqa: ARG002
        return self.answer


def test_shared_convention_gives_the_papers_keypoints() -> None:
    generator = torch.Generator().manual_seed(4)
    canonical = torch.rand(2, 20, 3, generator=generator) - 0.5
    delta = 0.1 * torch.rand(2, 20, 3, generator=generator)
    t = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.1, 0.0]])
    angles = torch.tensor([[20.0, -10.0, 5.0], [-40.0, 12.0, 0.0]])
    with torch.device("meta"):
        motion = PaperMotion(PAPER)
    motion.canonical, motion.pose = _Fixed(canonical), _Fixed(Estimate(angles, t, delta))
    out = motion(torch.zeros(2, 3, 8, 8))
    assert isinstance(out, MotionOutput)
    column = rotation_from_degrees(angles, PAPER).transpose(1, 2)
    expected = torch.einsum("bij,bkj->bki", column, canonical) + t[:, None] + delta  # Eq. 1: R x_c + t + delta
    assert torch.allclose(out.keypoints(), expected, atol=1e-6)
    assert torch.equal(out.scale, torch.ones(2, 1)) and torch.equal(out.confidence, torch.ones(2, 1))
    params = MotionParams.from_matrix(out.rotation[0].numpy(), out.translation[0].numpy(), 1.0, out.delta[0].numpy())
    np.testing.assert_allclose(params.keypoints(canonical[0].numpy()), expected[0].numpy(), atol=1e-5)


def test_unified_motion_scales_after_adding_the_expression() -> None:
    config = ModelConfig.community("liveportrait")
    canonical, delta = torch.rand(1, 21, 3), 0.1 * torch.rand(1, 21, 3)
    t, scale, angles = torch.tensor([[0.1, 0.2, 0.0]]), torch.tensor([[1.4]]), torch.tensor([[10.0, 5.0, -8.0]])
    with torch.device("meta"):
        motion = PaperMotion(config)
    motion.pose = _Fixed(Estimate(angles, t, delta, canonical, scale))
    out = motion(torch.zeros(1, 3, 8, 8))
    expected = 1.4 * (canonical @ rotation_from_degrees(angles, config) + delta) + t
    assert torch.allclose(out.keypoints(), expected, atol=1e-6)


def test_shrink_keeps_flat_pictures_flat_inside() -> None:
    shrink = AntiAliasedShrink(0.25)
    assert shrink.weight.shape == (3, 1, 13, 13)
    small = shrink(torch.full((1, 3, 64, 64), 0.7))
    assert small.shape == (1, 3, 16, 16)
    assert torch.allclose(small[..., 2:-2, 2:-2], torch.tensor(0.7), atol=1e-5)


# motion field


def test_candidate_flows_against_equation_4() -> None:
    generator = torch.Generator().manual_seed(5)
    source, driving = (torch.rand(1, 20, 3, generator=generator) - 0.5 for _ in range(2))
    rs, rd = (rotation_from_degrees(torch.tensor([a]), PAPER) for a in ([20.0, 5.0, -7.0], [-15.0, 10.0, 3.0]))
    with torch.device("meta"):
        turning = MotionField(PAPER)
        sliding = MotionField(ModelConfig.preset("paper", flow_rotation=False))
    flows = turning.candidate_flows((2, 3, 4), source, rs, driving, rd).reshape(1, 21, 2, 3, 4, 3)
    grid = coordinate_grid(2, 3, 4, source)
    assert torch.allclose(flows[0, 0], grid)
    r = rs[0].T @ torch.linalg.inv(rd[0].T)  # columns, as printed: R_s R_d^-1 (p - x_d) + x_s
    for k in (0, 7, 19):
        p = grid[1, 2, 3]
        assert torch.allclose(flows[0, k + 1, 1, 2, 3], r @ (p - driving[0, k]) + source[0, k], atol=1e-5)
    plain = sliding.candidate_flows((2, 3, 4), source, rs, driving, rd).reshape(1, 21, 2, 3, 4, 3)
    assert torch.allclose(plain[0, 4], grid - driving[0, 3] + source[0, 3], atol=1e-6)


def test_equal_keypoints_leave_every_flow_at_identity() -> None:
    points = torch.rand(2, 20, 3)
    rotation = rotation_from_degrees(torch.tensor([[30.0, 0.0, 0.0], [0.0, 20.0, 5.0]]), PAPER)
    with torch.device("meta"):
        field = MotionField(PAPER)
    flows = field.candidate_flows((4, 8, 8), points, rotation, points, rotation)
    assert torch.allclose(flows, coordinate_grid(4, 8, 8, points).reshape(1, 1, -1, 3).expand_as(flows), atol=1e-5)


@pytest.fixture(scope="module")
def renderer() -> PaperRenderer:
    torch.manual_seed(0)
    return PaperRenderer(PAPER).eval()


def _poses() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(6)
    source = torch.rand(1, 20, 3, generator=generator) - 0.5
    driving = source + 0.1 * torch.randn(1, 20, 3, generator=generator)
    rs, rd = (rotation_from_degrees(torch.tensor([a]), PAPER) for a in ([5.0, 0.0, 0.0], [-15.0, 8.0, 3.0]))
    return source, rs, driving, rd


def test_forward_pass_of_f_m_and_g_at_a_small_size(renderer: PaperRenderer) -> None:
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        (volume,) = AppearanceFeatures(PAPER).eval()(image)
        assert volume.shape == (1, 32, 16, 32, 32)
        rendering = renderer.render_full(image, volume, *_poses())
        renderer.volumetric = renderer.motion_field.volumetric = False
        flat = renderer(image, volume, *_poses())
        renderer.volumetric = renderer.motion_field.volumetric = True
    assert rendering.picture.shape == (1, 3, 128, 128)
    assert rendering.picture.min() >= 0 and rendering.picture.max() <= 1
    assert rendering.motion.flow.shape == (1, 16, 32, 32, 3)
    assert rendering.motion.occlusion.shape == (1, 1, 32, 32)
    assert torch.allclose(rendering.motion.masks.sum(1), torch.ones(1, 16, 32, 32), atol=1e-5)
    assert (flat - rendering.picture).abs().max() <= 1e-4


def test_set_volumetric_reaches_every_sampler() -> None:
    with torch.device("meta"):
        networks = build(UNNORMED)
    networks.set_volumetric(False)
    assert not networks.render.volumetric and not networks.render.motion_field.volumetric


def test_shapes_at_full_size_without_computing() -> None:
    with torch.device("meta"):
        networks = build(PAPER).eval()
        image = torch.zeros(2, 3, 256, 256)
        motion = networks.motion(image, None)
        features = networks.reference(image)
        points, rotation = motion.keypoints(), motion.rotation
        picture = networks.render(image, *features, points, rotation, points, rotation)
        shuffled = SpadeHead(UNNORMED, shuffle=True)(torch.zeros(1, 256, 64, 64))
        poses = {"source_keypoints": points, "source_rotation": rotation}
        full = networks.render_full(image, *features, **poses, driving_keypoints=points, driving_rotation=rotation)
    assert motion.canonical.shape == motion.delta.shape == (2, 20, 3)
    assert (motion.rotation.shape, motion.translation.shape) == ((2, 3, 3), (2, 3))
    assert [tuple(f.shape) for f in features] == [(2, 32, 16, 64, 64)]
    assert picture.shape == full.picture.shape == (2, 3, 256, 256)
    assert full.motion.masks.shape == (2, 21, 16, 64, 64)
    assert shuffled.shape == (1, 3, 512, 512)


def test_unified_motion_shapes_without_computing() -> None:
    with torch.device("meta"):
        motion = PaperMotion(ModelConfig.community("liveportrait"))(torch.zeros(2, 3, 256, 256))
    assert motion.canonical.shape == motion.delta.shape == (2, 21, 3)
    assert motion.scale.shape == motion.confidence.shape == (2, 1)


# discriminator


def test_discriminator_scales_heatmaps_and_gradients() -> None:
    torch.manual_seed(0)
    net = Discriminator(ModelConfig.preset("paper", discriminator_scales=2))
    picture = torch.rand(2, 3, 64, 64, requires_grad=True)
    keypoints = torch.zeros(2, 20, 3, requires_grad=True)
    results = net(picture, keypoints)
    assert [scores.shape for scores, _ in results] == [(2, 1, 8, 8), (2, 1, 4, 4)]
    assert [f.shape[1] for f in results[0][1]] == [64, 128, 256, 512]
    sum(scores.mean() for scores, _ in results).backward()
    assert picture.grad is not None and picture.grad.isfinite().all() and picture.grad.abs().max() > 0
    assert keypoints.grad is None
    with pytest.raises(ValueError, match="keypoints"):
        net(picture)


def test_spectral_norm_bounds_the_layers() -> None:
    torch.manual_seed(0)
    net = Discriminator(ModelConfig.preset("paper", discriminator_heatmaps=False))
    net.scales[0].score.parametrizations.weight.original.data.mul_(100)
    with torch.no_grad():
        for _ in range(30):
            net(torch.rand(1, 3, 32, 32))
        weight = net.scales[0].score.weight.reshape(1, -1)
    assert float(weight.norm()) == pytest.approx(1.0, abs=1e-3)
