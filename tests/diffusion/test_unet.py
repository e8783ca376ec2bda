"""The two networks: sizes, seeds, and the properties that training and guidance rely on."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.blocks.selfattention import SABlock
from torch import nn

from mgdm_ray.config import UNetConfig
from mgdm_ray.diffusion.changes import TOLD
from mgdm_ray.diffusion.unet import (
    MEMBERS,
    build_denoiser,
    build_guide,
    dropped_channels,
    null_label,
)
from tests.diffusion.conftest import give_every_weight_influence

DEFAULT = UNetConfig(channels=(16, 32, 48))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 12, 28, 36])
def test_sizes(channels, size):
    """Catches maps that do not fit after up-sampling, and a head of fixed width (28, 14, 7, 4)."""
    x, t = torch.zeros(2, channels, size, size), torch.tensor([0, 999])
    denoiser, guide = build_denoiser(DEFAULT, channels, 5, 0), build_guide(DEFAULT, channels, 5, 0)
    assert denoiser(x, t, class_labels=torch.tensor([0, 5])).shape == x.shape
    assert guide(x, t).shape == (2, 5)


def test_null_label_is_the_extra_class():
    """Catches an embedding without room for "no label", or one that a real class shares."""
    assert null_label(build_denoiser(DEFAULT, 1, 7, 0)) == 7
    with pytest.raises(TypeError, match="Linear"):
        null_label(nn.Linear(1, 1))


@pytest.mark.parametrize("build", [build_denoiser, build_guide])
def test_weights_come_from_the_seed_alone(build):
    """Catches initial weights from global random state, or global state that building disturbs."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(DEFAULT, 1, 2, "study", 3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = build(DEFAULT, 1, 2, "study", 3).state_dict()
    other = build(DEFAULT, 1, 2, "study", 4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_every_parameter_gets_a_gradient():
    """Catches unused parameters, with which DistributedDataParallel hangs or raises."""
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2])
    denoiser, guide = build_denoiser(DEFAULT, 1, 2, 0), build_guide(DEFAULT, 1, 2, 0)
    denoiser(x, t, class_labels=torch.tensor([0, 2])).sum().backward()
    guide(x, t).sum().backward()
    for network in (denoiser, guide):
        assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_an_untrained_denoiser_predicts_zero():
    """Catches a lost zero initialisation, which makes the first steps of training wild."""
    model = build_denoiser(DEFAULT, 1, 2, 0)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not bool(model(x, torch.tensor([5]), class_labels=torch.tensor([1])).any())


def attention_off_flash(network):
    """Make MONAI's attention blocks compute the whole matrix; how many there are."""
    blocks = [m for m in network.modules() if isinstance(m, SABlock)]
    assert all(block.use_flash_attention for block in blocks)
    for block in blocks:
        block.use_flash_attention = False
    return len(blocks)


@pytest.mark.parametrize("build", [build_denoiser, build_guide])
def test_flash_attention_is_attention(build):
    """Catches an attention without its scale or heads, other weights, and one that is not on: the
    matrix of 256 x 256 positions and two heads would be kept for backward, 512 KiB an image."""
    config = UNetConfig(channels=(32, 32), attention=(True, True))
    flash, plain = build(config, 3, 2, 0), build(config, 3, 2, 0)
    for network in (flash, plain):
        give_every_weight_influence(network)
    assert attention_off_flash(plain) >= 2
    assert list(flash.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = {"class_labels": torch.tensor([0, 1])} if build is build_denoiser else {}
    outputs, gradients, largest = [], [], []
    for network in (flash, plain):
        sizes = []

        def kept(tensor, sizes=sizes):
            sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
            outputs.append(network(x, torch.tensor([5, 900]), **labels))
        outputs[-1].square().sum().backward()
        gradients.append({n: p.grad for n, p in network.named_parameters()})
        largest.append(max(sizes))
    scale = float(outputs[1].detach().abs().max())
    assert float((outputs[0] - outputs[1]).detach().abs().max()) < 2e-6 * max(1.0, scale)
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        bound = 1e-5 * float(other.abs().max()) + 1e-6
        torch.testing.assert_close(gradient, other, rtol=0, atol=bound, msg=name)
    matrix = 2 * 2 * 256 * 256 * 4
    assert largest[1] >= matrix > largest[0]


def test_no_norm_works_on_single_channels():
    """Catches instance norm (16 groups of 16 channels): then images lose their mean brightness,
    and a toy denoiser of dark and bright images drew the right class in 62% instead of 100%."""
    narrow = UNetConfig(channels=(16, 32), attention=(False, True))
    for network in (build_denoiser(narrow, 1, 2, 0), build_guide(narrow, 1, 2, 0)):
        norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
        assert norms
        assert min(norm.num_channels // norm.num_groups for norm in norms) >= 2


def test_dropout_is_no_weight_and_leaves_the_answer_alone():
    """Catches masks in a checkpoint, a guide that dropout makes another, and masks of the seed's:
    a guide is loaded into a network that was built with another seed."""
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1, 999])
    plain, dropped = build_guide(DEFAULT, 1, 3, 5), build_guide(DEFAULT, 1, 3, 5, dropout=0.25)
    assert list(plain.state_dict()) == list(dropped.state_dict())
    assert torch.equal(plain(x, t), dropped(x, t))
    assert plain.member_masks is None
    masks = dropped.member_masks
    assert torch.equal(masks, build_guide(DEFAULT, 1, 3, 6, dropout=0.25).member_masks)
    assert masks.shape == (1 + MEMBERS, 1, DEFAULT.channels[-1])
    assert masks.unique().tolist() == pytest.approx([0, 1, 4 / 3])
    share = float((masks[1:] == 0).double().mean())
    assert share == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / masks[1:].numel()) ** 0.5)
    assert bool((masks[0] == 1).all())


def test_members_are_the_last_layer_of_masked_features():
    """Catches masks on the wrong axis: members against the same masks image by image."""
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t, guide = torch.tensor([1, 400, 999]), build_guide(DEFAULT, 1, 3, 0, dropout=0.5)
    members = guide(x, t, guide.member_masks)
    assert members.shape == (1 + MEMBERS, 3, 3)
    torch.testing.assert_close(members[0], guide(x, t))
    for member, mask in zip(members, guide.member_masks, strict=True):
        torch.testing.assert_close(member, guide(x, t, mask.expand(3, -1)))


# --- dropout and changes of the denoiser --------------------------------------------------------

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
GIVEN = X, torch.tensor([3, 500, 900])
Y = torch.tensor([0, 1, 2])


def test_masks_are_of_single_channels_and_images():
    """Catches a mask that has no effect, that reaches another image, or that stays for the next
    forward; and a count of channels that is not the network's."""
    model = build_denoiser(DEFAULT, 1, 2, 0, dropout=True)
    give_every_weight_influence(model)
    whole = model(*GIVEN, class_labels=Y)
    masks = torch.ones(3, dropped_channels(DEFAULT))
    torch.testing.assert_close(model(*GIVEN, class_labels=Y, masks=masks), whole)
    for channel in (0, masks.shape[1] // 2, masks.shape[1] - 1):
        one = masks.clone()
        one[1, channel] = 0
        changed = (model(*GIVEN, class_labels=Y, masks=one) - whole).abs().amax(dim=(1, 2, 3))
        assert changed[1] > 1e-6
        assert changed[[0, 2]].max() < 1e-5
    torch.testing.assert_close(model(*GIVEN, class_labels=Y), whole)
    with pytest.raises(RuntimeError):
        model(*GIVEN, class_labels=Y, masks=masks[:, 1:])


def test_dropout_adds_no_weights_and_reaches_no_copy():
    """Catches a model that sampling could not load, and an average that drops channels."""
    model, plain = build_denoiser(DEFAULT, 1, 2, 0, dropout=True), build_denoiser(DEFAULT, 1, 2, 0)
    assert all(torch.equal(a, plain.state_dict()[n]) for n, a in model.state_dict().items())
    give_every_weight_influence(model)
    copied = copy.deepcopy(model)
    nothing_left = torch.zeros(3, dropped_channels(DEFAULT))
    model(*GIVEN, class_labels=Y, masks=nothing_left)
    assert not torch.equal(
        copied(*GIVEN, class_labels=Y), model(*GIVEN, class_labels=Y, masks=nothing_left)
    )
    torch.testing.assert_close(copied(*GIVEN, class_labels=Y), model(*GIVEN, class_labels=Y))


def test_changes_are_told_and_none_are_as_if_not_asked():
    """Catches a condition that is lost, and sampling at other conditions than 'nothing changed'."""
    model, plain = build_denoiser(DEFAULT, 1, 2, 0, augment=True), build_denoiser(DEFAULT, 1, 2, 0)
    give_every_weight_influence(model)
    nothing = torch.zeros(3, TOLD)
    torch.testing.assert_close(
        model(*GIVEN, class_labels=(Y, nothing)), model(*GIVEN, class_labels=Y)
    )
    for number in range(TOLD):
        told = nothing.clone()
        told[0, number] = 1
        differs = (
            (model(*GIVEN, class_labels=(Y, told)) - model(*GIVEN, class_labels=Y))
            .abs()
            .amax(dim=(1, 2, 3))
        )
        assert differs[0] > 1e-6
        assert differs[1:].max() < 1e-5
    assert null_label(model) == null_label(plain)
    model(*GIVEN, class_labels=(Y, nothing + 1)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    own = {"class_embedding.weight", "class_embedding.changes.weight"}  # drawn after all others
    fresh = build_denoiser(DEFAULT, 1, 2, 0, augment=True).state_dict()
    shared = fresh.keys() - own
    assert all(torch.equal(fresh[name], plain.state_dict()[name]) for name in shared)
