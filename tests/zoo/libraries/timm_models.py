"""Models of timm: at least two of every family that has two, more where a family varies in how it holds its weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ..entries import Entry, Example
from .torchvision_import import prepare

prepare()

import timm  # noqa: E402

#: Module of timm.models -> names of models.
FAMILIES = {
    "beit": "beit_base_patch16_224 beitv2_base_patch16_224",
    "byoanet": "eca_botnext26ts_256 eca_halonext26ts lambda_resnet26t haloregnetz_b sebotnet33ts_256"
    " lamhalobotnet50ts_256",
    "byobnet": "test_byobnet mobileone_s0 gernet_s repvgg_a0 regnetz_b16_evos eca_resnext26ts gcresnext26ts"
    " bat_resnext26ts resnet51q resnet50_clip_gap resnet50_mlp",
    "cait": "cait_xxs24_224 cait_xs24_384",
    "coat": "coat_tiny coat_lite_tiny coat_lite_medium_384",
    "convit": "convit_tiny convit_small",
    "convmixer": "convmixer_768_32 convmixer_1024_20_ks9_p14",
    "convnext": "test_convnext test_convnext3 convnext_zepto_rms_ols convnextv2_atto convnext_tiny_hnf"
    " convnext_atto_ols",
    "cpubone": "cpubone_nano cpubone_b1_dwnorm cpubone_b0_bfrobust",
    "crossvit": "crossvit_9_240 crossvit_9_dagger_240",
    "csatv2": "csatv2 csatv2_21m",
    "cspnet": "cs3darknet_focus_s cs3sedarknet_xdw cspresnext50 sedarknet21 darknetaa53 cs3edgenet_x",
    "cspnext": "cspnext_tiny cspnext_s",
    "davit": "davit_tiny davit_base_fl",
    "deepseek_vit": "deepseek_vit_412m deepseek_vit_412m_align",
    "deit": "deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224",
    "densenet": "densenet121 densenetblur121d",
    "dla": "dla46x_c dla60_res2next dla60_res2net dla34",
    "dpn": "dpn48b dpn68b",
    "edgenext": "edgenext_xx_small edgenext_x_small",
    "efficientformer": "efficientformer_l1 efficientformer_l3",
    "efficientformer_v2": "efficientformerv2_s0 efficientformerv2_s1",
    "efficientnet": "test_efficientnet_evos efficientnet_b0 tf_efficientnet_b0 efficientnet_b0_g8_gn"
    " tf_efficientnetv2_b0"
    " mixnet_s tf_mixnet_s mobilenetv2_100 tinynet_e fbnetc_100 mnasnet_100 efficientnet_es mobilenetv1_100"
    " mobilenet_edgetpu_v2_xs efficientnet_b1_pruned",
    "efficientvim": "efficientvim_m1 efficientvim_m1_dist",
    "efficientvit_mit": "efficientvit_b0 efficientvit_l1",
    "efficientvit_msra": "efficientvit_m0 efficientvit_m1",
    "eva": "eva02_tiny_patch14_224 vit_pe_core_tiny_patch16_384 vit_small_patch16_dinov3_qkvb"
    " vit_small_patch16_rope_mixed_ape_224 vit_small_patch16_lingbot eva02_base_patch16_clip_224"
    " vit_pe_spatial_tiny_patch16_512",
    "fasternet": "fasternet_t0 fasternet_t1",
    "fastvit": "fastvit_t8 fastvit_sa12 fastvit_mci0",
    "focalnet": "focalnet_tiny_srf focalnet_tiny_lrf",
    "gcvit": "gcvit_xxtiny gcvit_xtiny",
    "gemma4_vit": "gemma4_vit_167m gemma4_vit_167m_enc",
    "ghostnet": "ghostnet_050 ghostnetv2_100 ghostnetv3_050",
    "hardcorenas": "hardcorenas_b hardcorenas_a",
    "hgnet": "hgnetv2_b0 hgnet_tiny",
    "hiera": "hiera_tiny_224 hiera_small_abswin_256",
    "hieradet_sam2": "sam2_hiera_tiny hieradet_small",
    "hrnet": "hrnet_w18_small hrnet_w18_ssld",
    "iformer": "iformer_t iformer_m_distilled",
    "inception_next": "inception_next_atto inception_next_tiny",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small lcnetv2_base",
    "levit": "levit_128s levit_conv_128s levit_256d levit_conv_256d",
    "lowformer": "lowformer_b0 lowformer_e1",
    "mambaout": "test_mambaout mambaout_femto",
    "maxxvit": "test_coatnet test_maxvit maxvit_rmlp_pico_rw_256 coatnet_nano_cc_224 coatnext_nano_rw_224"
    " maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256 coatnet_0_224 coatnet_bn_0_rw_224",
    "metaformer": "poolformer_s12 poolformerv2_s12 caformer_s18 convformer_s18",
    "mlp_mixer": "gmixer_24_224 gmlp_ti16_224 gmlp_s16_224 mixer_s32_224 resmlp_12_224",
    "mobilenetv3": "mobilenetv3_small_100 lcnet_035 mobilenetv4_conv_small tf_mobilenetv3_small_minimal_100"
    " mobilenetv4_hybrid_medium mobilenetv4_conv_aa_medium fbnetv3_b mobilenetv3_rw",
    "mobilenetv5": "mobilenetv5_base mobilenetv5_300m",
    "mobilevit": "mobilevit_xxs mobilevitv2_050",
    "mvitv2": "mvitv2_tiny mvitv2_small_cls",
    "naflexvit": "naflexvit_base_patch16_par_gap naflexvit_base_patch16_map naflexvit_so150m2_patch16_reg1_gap",
    "nasnet": "nasnetalarge",
    "nest": "nest_tiny nest_tiny_jx",
    "nextvit": "nextvit_small nextvit_base",
    "nfnet": "test_nfnet nf_regnet_b0 nf_ecaresnet26 nf_seresnet26 eca_nfnet_l0 nfnet_l0",
    "pit": "pit_ti_224 pit_ti_distilled_224",
    "pnasnet": "pnasnet5large",
    "pvt_v2": "pvt_v2_b0 pvt_v2_b2_li",
    "qwen3_vit": "qwen3_vit_88m qwen3_vit_88m_enc",
    "rdnet": "rdnet_tiny rdnet_small",
    "regnet": "regnetx_002 regnety_002 regnetz_005 regnetv_040 regnety_008_tv regnetz_040_h",
    "repghost": "repghostnet_050 repghostnet_058",
    "repvit": "repvit_m1 repvit_m0_9",
    "res2net": "res2next50 res2net50d res2net50_14w_8s",
    "resnest": "resnest14d resnest50d_4s2x40d",
    "resnet": "test_resnet resnet18d resnetblur18 ecaresnext26t_32x4d seresnext26d_32x4d resnet50_gn resnetrs50"
    " resnet50s ecaresnetlight",
    "resnetv2": "resnetv2_18d resnetv2_50x1_bit resnetv2_50d_gn resnetv2_50d_evos resnetv2_50d_frn resnetv2_50t",
    "rexnet": "rexnet_100 rexnetr_100",
    "selecsls": "selecsls42 selecsls60",
    "senet": "legacy_seresnet18 legacy_seresnext26_32x4d legacy_senet154",
    "sequencer": "sequencer2d_s sequencer2d_m",
    "shvit": "shvit_s1 shvit_s2",
    "sknet": "skresnet18 skresnext50_32x4d",
    "starnet": "starnet_s050 starnet_s100",
    "swiftformer": "swiftformer_xs swiftformer_s",
    "swin_transformer": "swin_tiny_patch4_window7_224 swin_s3_tiny_224",
    "swin_transformer_v2": "swinv2_tiny_window16_256 swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224 swinv2_cr_tiny_ns_224",
    "tiny_vit": "tiny_vit_5m_224 tiny_vit_11m_224",
    "tnt": "tnt_s_patch16_224 tnt_s_legacy_patch16_224",
    "tresnet": "tresnet_m tresnet_v2_l",
    "twins": "twins_svt_small twins_pcpvt_small",
    "vgg": "vgg11 vgg11_bn",
    "visformer": "visformer_tiny visformer_small",
    "vision_transformer": "test_vit test_vit3 test_vit4 vit_tiny_patch16_224 vit_small_patch14_reg4_dinov2"
    " vit_dpwee_patch16_reg1_gap_256 flexivit_small vit_medium_patch16_gap_240 vit_small_patch16_18x2_224"
    " vit_base_patch32_clip_quickgelu_224 vit_base_patch32_siglip_gap_256 beit3_base_patch16_224"
    " vit_base_patch16_rpn_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224 vit_small_resnet26d_224 vit_base_mci_224",
    "vision_transformer_relpos": "test_vit_relpos vit_srelpos_small_patch16_224 vit_relpos_small_patch16_rpn_224"
    " vit_relpos_base_patch16_clsgap_224",
    "vision_transformer_sam": "samvit_base_patch16_224 samvit_base_patch16",
    "vitamin": "vitamin_small_224 vitamin_base_224",
    "volo": "volo_d1_224 volo_d2_224",
    "vovnet": "ese_vovnet19b_dw eca_vovnet39b ese_vovnet39b_evos vovnet39a",
    "xception": "legacy_xception",
    "xception_aligned": "xception41 xception41p",
    "xcit": "xcit_nano_12_p16_224 xcit_nano_12_p8_224 xcit_tiny_24_p16_224",
}
#: Smallest side that the model accepts, where 64 is too small for it.
SIDES = {
    "eca_halonext26ts": 256,
    "haloregnetz_b": 224,
    "lamhalobotnet50ts_256": 128,
    "bat_resnext26ts": 256,
    "crossvit_9_240": 240,
    "crossvit_9_dagger_240": 240,
    "deepseek_vit_412m": 224,
    "deepseek_vit_412m_align": 224,
    "efficientformer_l1": 224,
    "efficientformer_l3": 224,
    "gemma4_vit_167m_enc": 96,
    "inception_resnet_v2": 96,
    "inception_v3": 96,
    "inception_v4": 96,
}
#: Built with two blocks only.
SHALLOW = {"deepseek_vit_412m", "gemma4_vit_167m_enc", "deepseek_vit_412m_align", "gemma4_vit_167m"}
#: Too large to run beside another model.
LARGE = {"mobilenetv5_300m"}


def entries() -> Iterator[Entry]:
    """One entry per model."""
    for family, names in FAMILIES.items():
        for name in names.split():
            yield Entry("timm", name, family, partial(_build, name), alone=name in LARGE)


def _build(name: str) -> Example:
    side = SIDES.get(name, 64)
    options = {"depth": 2} if name in SHALLOW else {}
    try:
        model = timm.create_model(name, pretrained=False, num_classes=10, img_size=side, **options)
    except TypeError:  # a network that takes any size
        model = timm.create_model(name, pretrained=False, num_classes=10, **options)
    return Example(model, torch.randn(2, 3, side, side))
