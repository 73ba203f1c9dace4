"""Wrong commands are refused when they are composed: quickly, without a traceback, with the key and the remedy."""

import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from umamba import settings
from umamba.cli.compose import settings_of, sweep_problems
from umamba.cli.main import COMMANDS, EXIT_USER_ERROR, main
from umamba.settings import InvalidSettings

LIMIT_S = 3.0
PHANTOM = "dataset=phantom"

# What is typed after `umamba`, and parts of the message: the key, and what would be right.
WRONG: list[tuple[str, tuple[str, ...]]] = [
    # The command itself.
    ("trian dataset=phantom", ("trian", "Did you mean train")),
    ("predct checkpoint=a", ("predct", "Did you mean predict")),
    ("train dataset", ("dataset: must be key=value",)),
    ("train dataset=phantom name=[a", ("name=[a", "quotes")),
    ("slurm sumbit table4_2d", ("sumbit", "Did you mean submit")),
    ("slurm submit", ("give one study",)),
    ("slurm submit table9", ("table9", "table4_2d")),
    ("slurm submit table4_2d --partition gpu", ("slurm.partition=VALUE",)),
    ("slurm dry-run table4_2d slurm.gpu=1", ("slurm.gpu", "Did you mean 'slurm.gpus'")),
    ("slurm dry-run table4_2d slurm.cpus=none", ("slurm.cpus=none", "whole number")),
    ("slurm dry-run table4_2d slurm.time_limit=soon", ("slurm.time_limit=soon", "24:00:00")),
    ("slurm dry-run table4_2d slurm.extra=[account]", ("slurm.extra", "--account=NAME")),
    ("slurm dry-run table4_2d trainer.max_epoch=1", ("trainer.max_epochs",)),
    ("study tabel4_2d", ("tabel4_2d", "table4_2d")),
    ("check-backbone", ("give one backbone", "mypackage.module:build")),
    ("check-backbone unett", ("architecture.name=unett", "Did you mean unet")),
    ("check-backbone unetr feature=3", ("architecture.feature", "Did you mean 'architecture.feature_size'")),
    ("check-backbone mypackage.module:build", ("there is no module mypackage", "PYTHONPATH")),
    ("check-backbone unet --dims=3", ("--dim=2 or --dim=3",)),
    ("completion fish", ("completion fish", "bash")),
    ("doctor now", ("doctor takes no arguments",)),
    ("check-backbone", ("give one backbone",)),
    ("check-backbone unet --dmi=2", ("--dim=2",)),
    # Groups.
    ("train dataset=phantoms", ("dataset=phantoms", "Did you mean phantom")),
    (f"train {PHANTOM} architecture=umambabot", ("architecture=umambabot", "Did you mean umamba_bot", "swinunetr")),
    (f"train {PHANTOM} recipe=nnunett", ("recipe=nnunett", "Did you mean nnunet")),
    (f"train {PHANTOM} augmentation=heavy", ("augmentation=heavy", "light")),
    (f"train {PHANTOM} plan=3d_full", ("plan=3d_full", "Did you mean 3d_fullres")),
    (f"train {PHANTOM} planner=resenc", ("planner=resenc", "resenc_m")),
    (f"train {PHANTOM} trainer=dpp", ("trainer=dpp", "Did you mean ddp")),
    (f"train {PHANTOM} logger=comet", ("logger=comet", "wandb")),
    ("train experiment=flare", ("experiment=flare", "flare_umamba_enc")),
    (f"train {PHANTOM} architecure=unet", ("architecure", "Did you mean 'architecture'")),
    ("train -m experiment=glob(flair_*)", ("experiment=glob(flair_*)", "matches no option", "flare_unet")),
    (f"train -m {PHANTOM} architecture=unet,umambaenc", ("architecture=umambaenc", "Did you mean umamba_enc")),
    # Keys at the top.
    ("train", ("dataset.root", "dataset.root=...")),
    (f"train {PHANTOM} fold=x", ("fold=x", "or all")),
    (f"train {PHANTOM} fold=-1", ("fold=-1", "from 0 on")),
    (f"train {PHANTOM} fold=1.5", ("fold=1.5", "whole number")),
    (f"train {PHANTOM} seed=one", ("seed=one", "whole number")),
    (f"train {PHANTOM} seed=-3", ("seed=-3", "from 0")),
    (f"train {PHANTOM} sed=3", ("Unknown key 'sed'", "Did you mean 'seed'")),
    (f"train {PHANTOM} name=../evil", ("name=../evil", "one folder")),
    (f"train {PHANTOM} name=.hidden", ("name=.hidden", "dot")),
    (f"train {PHANTOM} restart=yes-please", ("restart=yes-please", "true or false")),
    (f"train {PHANTOM} smoke=maybe", ("smoke=maybe", "true or false")),
    (f"train {PHANTOM} pretrained=nowhere.ckpt", ("pretrained=nowhere.ckpt", "no such file")),
    # Dataset and plan.
    (f"train {PHANTOM} dataset.protocol=abdomn", ("dataset.protocol=abdomn", "Did you mean abdomen")),
    (f"train {PHANTOM} dataset.kind=dicom", ("dataset.kind=dicom", "phantom")),
    (f"train {PHANTOM} dataset.tolerance_mm=-1", ("dataset.tolerance_mm=-1", "from 0 on")),
    (f"train {PHANTOM} dataset.rot=x", ("dataset.rot", "Did you mean 'dataset.root'")),
    (f"train {PHANTOM} dataset.phantom.num_training=0", ("dataset.phantom.num_training=0", "from 1 on")),
    (f"train {PHANTOM} dataset.phantom.scene=brain", ("dataset.phantom.scene=brain", "abdomen")),
    (f"train {PHANTOM} dataset.phantom.voxel=3", ("dataset.phantom.voxel", "voxel_mm")),
    (f"train {PHANTOM} dataset.phantom.scene=cells dataset.phantom.voxel_mm=3", ("dataset.phantom.voxel_mm", "null")),
    (f"train {PHANTOM} planner.rules=nnunet2", ("planner.rules=nnunet2", "Did you mean nnunet")),
    (f"train {PHANTOM} planner.gpu_memory_gb=0", ("planner.gpu_memory_gb=0", "above 0")),
    (f"train {PHANTOM} plan.batch_size=many", ("plan.batch_size=many", "whole number")),
    (f"train {PHANTOM} plan.bath_size=2", ("Did you mean 'plan.batch_size'",)),
    (f"train {PHANTOM} plan.patch_size=[32,32]", ("plan.patch_size=[32, 32]", "3 positive entries")),
    (f"train {PHANTOM} plan.patch_size=32", ("plan.patch_size=32", "a list")),
    (f"train {PHANTOM} plan=2d plan.spacing=[1,1,1]", ("plan.spacing", "2d needs 2")),
    (f"train {PHANTOM} plan.normalization=[CT]", ("plan.normalization", "CTNormalization")),
    (f"train {PHANTOM} plan.kernel_sizes=[[2,3,3]]", ("plan.kernel_sizes", "odd")),
    (f"train {PHANTOM} plan.strides=[[2,2,2]]", ("plan.strides", "first stage")),
    (f"train {PHANTOM} plan.features_per_stage=[8,8] plan.encoder_blocks=[1]", ("features_per_stage", "stages")),
    (f"train {PHANTOM} plan.configuration=null", ("plan.configuration=null", "3d_fullres")),
    (f"train {PHANTOM} plan.from_file=none.json", ("plan.from_file=none.json", "no such file")),
    (f"train {PHANTOM} plan=paper", ("Table 2", "AbdomenCT")),
    # Architectures.
    (f"train {PHANTOM} architecture.name=vit", ("architecture.name=vit", "unetr")),
    (f"train {PHANTOM} architecture=unet architecture.d_state=4", ("architecture.d_state", "Keys of architecture")),
    (f"train {PHANTOM} architecture.blocks=offical", ("architecture.blocks=offical", "Did you mean official")),
    (f"train {PHANTOM} architecture.mamba=false", ("architecture.mamba=false", "identity")),
    (f"train {PHANTOM} architecture.d_state=0", ("architecture.d_state=0", "from 1 to 4096")),
    (f"train {PHANTOM} architecture.scan_backend=cudnn", ("architecture.scan_backend=cudnn", "triton")),
    (f"train {PHANTOM} architecture=umamba_enc architecture.mamba_stages=some", ("mamba_stages=some", "official")),
    (f"train {PHANTOM} architecture=segresnet architecture.init_filters=12", ("init_filters=12", "multiple of 8")),
    (f"train {PHANTOM} architecture=segresnet architecture.blocks_up=[1]", ("blocks_up", "one entry less")),
    (f"train {PHANTOM} architecture=unetr architecture.hidden_size=100", ("hidden_size=100", "num_heads=12")),
    (f"train {PHANTOM} architecture=swinunetr architecture.depths=[2,2]", ("depths=[2, 2]", "4 whole numbers")),
    (f"train {PHANTOM} architecture=swinunetr architecture.feature_size=50", ("feature_size=50", "multiple of 12")),
    # Recipes.
    (f"train {PHANTOM} recipe.ema_momentum=oops", ("recipe.ema_momentum=oops", "number from 0")),
    (f"train {PHANTOM} recipe.ema_momentum=1", ("recipe.ema_momentum=1", "below 1")),
    (f"train {PHANTOM} recipe.gradient_clip_norm=twelve", ("recipe.gradient_clip_norm=twelve", "above 0")),
    (f"train {PHANTOM} +recipe.gradient_clipnorm=3", ("Did you mean 'recipe.gradient_clip_norm'",)),
    (f"train {PHANTOM} recipe.optimizer.name=lion", ("recipe.optimizer.name=lion", "adamw")),
    (f"train {PHANTOM} recipe.optimizer.lr=fast", ("recipe.optimizer.lr=fast", "a number")),
    (f"train {PHANTOM} recipe.optimizer.lr=-0.1", ("recipe.optimizer.lr=-0.1", "from 0 on")),
    (f"train {PHANTOM} recipe=unetr recipe.optimizer.momentum=0.9", ("recipe.optimizer.momentum", "adamw has no")),
    (f"train {PHANTOM} recipe.optimizer.momentum=0 recipe.optimizer.nesterov=true", ("nesterov", "momentum above 0")),
    (f"train {PHANTOM} recipe.optimizer.beta=[0.9,0.99]", ("Did you mean 'recipe.optimizer.betas'",)),
    (f"train {PHANTOM} recipe.schedule.name=linear", ("recipe.schedule.name=linear", "poly")),
    (f"train {PHANTOM} recipe.schedule.minimum=2", ("recipe.schedule.minimum=2", "to 1")),
    (f"train {PHANTOM} recipe.loss.focal_gamma=-2", ("recipe.loss.focal_gamma=-2", "from 0 on")),
    (f"train {PHANTOM} recipe.loss.tversky=[0.3]", ("recipe.loss.tversky", "2 numbers")),
    (f"train {PHANTOM} recipe.loss.dice_weight=0 recipe.loss.cross_entropy_weight=0", ("recipe.loss", "both 0")),
    (f"train {PHANTOM} recipe.precision=bf16", ("recipe.precision=bf16", "Did you mean bf16-mixed")),
    (f"train {PHANTOM} recipe.oversample_foreground=33", ("recipe.oversample_foreground=33", "to 1")),
    (f"train {PHANTOM} recipe.weight_averaging=1.5", ("recipe.weight_averaging=1.5", "below 1")),
    (f"train {PHANTOM} recipe.deep_supervision=2", ("recipe.deep_supervision=2", "true or false")),
    # Augmentation.
    (f"train {PHANTOM} augmentation.rotation.p=2", ("augmentation.rotation.p=2", "from 0 to 1")),
    (f"train {PHANTOM} augmentation.noise.std=[0.2,0.1]", ("augmentation.noise.std", "low <= high")),
    (f"train {PHANTOM} augmentation.gama.p=0.1", ("augmentation.gama", "Did you mean 'augmentation.gamma'")),
    (f"train {PHANTOM} augmentation.mirror.axes=[3]", ("augmentation.mirror.axes=[3]", "0, 1, 2")),
    (f"train {PHANTOM} plan=2d augmentation.mirror.axes=[2]", ("augmentation.mirror.axes=[2]", "null mirrors all")),
    (f"train {PHANTOM} augmentation.device=tpu", ("augmentation.device=tpu", "gpu")),
    (f"train {PHANTOM} augmentation.blur=0.2", ("augmentation.blur=0.2", "must hold keys")),
    # Time budget, measured plan.
    (f"train {PHANTOM} budget=45", ("budget=45", "45min")),
    (f"train {PHANTOM} budget=1s", ("budget=1s", "at least 10s")),
    (f"train {PHANTOM} finish_by=25:00", ("finish_by=25:00", "07:30")),
    (f"train {PHANTOM} budget=1h trainer.max_time=01:00:00", ("trainer.max_time", "Leave out one")),
    (f"train {PHANTOM} recipe.schedule.warm_up=0.8", ("warm_up=0.8", "sum up to 1")),
    (f"train {PHANTOM} planner.measure=true plan.batch_size=4", ("planner.measure=true", "plan.batch_size")),
    # Data, trainer, logger, prediction.
    (f"train {PHANTOM} data.num_workers=-1", ("data.num_workers=-1", "from 0 on")),
    (f"train {PHANTOM} data.prefetch_factor=0", ("data.prefetch_factor=0", "from 1 on")),
    (f"train {PHANTOM} data.iterations_per_epoch=0", ("data.iterations_per_epoch=0", "from 1 on")),
    (f"train {PHANTOM} data.validate_cases_evry=3", ("Did you mean 'data.validate_cases_every'",)),
    (f"train {PHANTOM} trainer.max_epochs=0", ("trainer.max_epochs=0", "from 1 on")),
    (f"train {PHANTOM} trainer.max_epoch=3", ("Did you mean 'trainer.max_epochs'",)),
    (f"train {PHANTOM} trainer.compile=sure", ("trainer.compile=sure", "true or false")),
    (f"train {PHANTOM} trainer.accelerator=gpuu", ("trainer.accelerator=gpuu", "Did you mean gpu")),
    (f"train {PHANTOM} trainer.precision=fp16", ("trainer.precision=fp16", "16-mixed")),
    (f"train {PHANTOM} trainer.max_time=soon", ("trainer.max_time=soon", "HH:MM:SS")),
    (f"train {PHANTOM} trainer.devices=0", ("trainer.devices", "accelerator=cpu")),
    (f"train {PHANTOM} trainer.strategy=ddpp", ("trainer.strategy=ddpp", "Did you mean ddp")),
    (f"train {PHANTOM} trainer.profiler=fast", ("trainer.profiler=fast", "simple")),
    (f"train {PHANTOM} trainer.limit_train_batches=1.5", ("trainer.limit_train_batches=1.5", "fraction")),
    (f"train {PHANTOM} trainer.limit_val_batches=-1", ("trainer.limit_val_batches=-1", "from 0 on")),
    (f"train {PHANTOM} trainer.ddp_batch=split", ("trainer.ddp_batch=split", "divide")),
    (f"train {PHANTOM} trainer.find_lr=true trainer.devices=2", ("trainer.find_lr=true", "trainer.devices=1")),
    (f"train {PHANTOM} +trainer.gradient_clip_val=1", ("trainer.gradient_clip_val", "recipe.gradient_clip_norm")),
    (f"train {PHANTOM} +trainer.fast_dev_run=maybe", ("trainer.fast_dev_run=maybe", "true or false")),
    (f"train {PHANTOM} +trainer.callbacks=[a]", ("trainer.callbacks", "groups of keys")),
    (f"train {PHANTOM} trainer.callbacks=[{{name:EarlyStoping}}]", ("EarlyStoping", "Did you mean EarlyStopping")),
    (f"train {PHANTOM} trainer.callbacks=[{{name:EarlyStopping}}]", ("trainer.callbacks[0]", "needs monitor")),
    (
        f"train {PHANTOM} trainer.callbacks=[{{name:EarlyStopping,monitor:val_loss}}]",
        ("trainer.callbacks[0].monitor=val_loss", "Did you mean val/loss"),
    ),
    (
        f"train {PHANTOM} trainer.callbacks=[{{name:EarlyStopping,monitor:val/loss,patient:3}}]",
        ("trainer.callbacks[0].patient", "Did you mean 'trainer.callbacks[0].patience'"),
    ),
    (
        f"train {PHANTOM} fold=all trainer.callbacks=[{{name:EarlyStopping,monitor:val/loss}}]",
        ("monitor=val/loss", "seen/"),
    ),
    (
        f"train {PHANTOM} data.val_iterations=0 data.validate_cases_every=1 "
        "trainer.callbacks=[{name:EarlyStopping,monitor:val/case_dice}]",
        ("data.validate_cases_every=1: whole cases", "monitor=val/case_dice: there are no validation batches"),
    ),
    (
        f"train {PHANTOM} trainer.callbacks=[{{name:EarlyStopping,monitor:val/case_dice}}]",
        ("monitor=val/case_dice", "data.validate_cases_every=1"),
    ),
    (f"train {PHANTOM} trainer.callbacks=[{{name:ModelCheckpoint}}]", ("ModelCheckpoint", "predict.checkpoint=best")),
    (f"train {PHANTOM} trainer.early_stopping.patience=5", ("trainer.early_stopping", "trainer.callbacks")),
    (f"train {PHANTOM} trainer.max_steps=100", ("trainer.max_steps", "trainer.max_epochs")),
    (f"train {PHANTOM} trainer.precision=16-true", ("trainer.precision=16-true", "Did you mean")),
    (f"train {PHANTOM} trainer.accelerator=cdua", ("trainer.accelerator=cdua", "Did you mean cuda")),
    (f"train {PHANTOM} trainer.enable_checkpointing=true", ("trainer.enable_checkpointing=true", "false")),
    (f"train {PHANTOM} logger.wandb=perhaps", ("logger.wandb=perhaps", "true or false")),
    (f"train {PHANTOM} logger=csv logger.upload_model=true", ("logger.upload_model=true", "logger=wandb")),
    (f"train {PHANTOM} predict.checkpoint=lsat", ("predict.checkpoint=lsat", "Did you mean last")),
    (f"train {PHANTOM} predict.tile_step_size=0", ("predict.tile_step_size=0", "above 0")),
    (f"train {PHANTOM} predict.tta=both", ("predict.tta=both", "true or false")),
    (f"train {PHANTOM} predict.checkpoint=best data.val_iterations=0", ("predict.checkpoint=best", "val_iterations")),
    (
        f"train {PHANTOM} trainer.callbacks=[{{name:EarlyStopping,monitor:val/case_loss}}]",
        ("monitor=val/case_loss", "heads.case=TABLE"),
    ),
    (
        f"train {PHANTOM} budget=10min trainer.callbacks=[{{name:EarlyStopping,monitor:val/case_dice}}]",
        ("monitor=val/case_dice", "a budget validates no whole cases"),
    ),
    (
        f"train {PHANTOM} logger=csv trainer.callbacks=[{{name:LearningRateMonitor}}]",
        ("LearningRateMonitor sends values to a logger", "logger=tensorboard"),
    ),
    (
        f"train {PHANTOM} data.iterations_per_epoch=2 ++trainer.val_check_interval=5",
        ("trainer.val_check_interval=5", "an epoch has 2 batches"),
    ),
    (
        f"train {PHANTOM} predict.checkpoint=best trainer.max_epochs=3 ++trainer.check_val_every_n_epoch=5",
        ("trainer.check_val_every_n_epoch=5", "no epoch of 3 is validated"),
    ),
    (f"train {PHANTOM} finish_by=9999-12-31T23:59-05:00", ("finish_by=9999", "07:30")),
    (f"train {PHANTOM} finish_by=0001-01-01T00:00", ("finish_by=0001", "07:30")),
    (f"train {PHANTOM} paths.raws=x", ("paths.raws", "Did you mean 'paths.raw'")),
    # Keys that would do nothing.
    (f"train {PHANTOM} recipe.schedule.warm_up=0.1", ("warm_up=0.1: recipe.schedule.name=poly has no", "0.02")),
    (f"train {PHANTOM} recipe.schedule.name=cosine recipe.schedule.exponent=2", ("exponent=2", "exponent=0.9")),
    (f"train {PHANTOM} recipe=unetr recipe.schedule.name=constant", ("exponent=1", "constant has no exponent")),
    (f"train {PHANTOM} recipe.schedule.minimum=0.5", ("minimum=0.5", "poly has no minimum")),
    (
        f"train {PHANTOM} recipe.loss.cross_entropy_weight=0 recipe.loss.focal_gamma=2",
        ("focal_gamma", "entropy_weight is 0"),
    ),
    (f"train {PHANTOM} recipe.loss.dice_weight=0 recipe.loss.tversky=[0.3,0.7]", ("tversky", "dice_weight is 0")),
    (f"train {PHANTOM} recipe.loss.class_weights=[0,0,0]", ("class_weights=[0.0, 0.0, 0.0]", "cross_entropy_weight=0")),
    (f"train {PHANTOM} recipe.loss.distillation_weight=3", ("distillation_weight", "teacher=CHECKPOINT")),
    (f"train {PHANTOM} plan.strides=[]", ("plan.strides=[]", "null to derive it")),
    (f"train {PHANTOM} plan.decoder_blocks=[]", ("plan.decoder_blocks=[]", "null to derive it")),
    # The other commands.
    (f"pretrain {PHANTOM} masking.share=1.5", ("masking.share=1.5", "below 1")),
    (f"pretrain {PHANTOM} images=[nowhere]", ("images", "no such file")),
    (f"pretrain {PHANTOM} teacher=. masking.block=[4,4]", ("teacher", "masking.block=[4, 4]", "3 edges")),
    (f"train {PHANTOM} pretrained=run:a/b", ("pretrained=run:a/b", "run:NAME")),
    (f"train {PHANTOM} recipe=finetune", ("recipe.finetune", "pretrained=")),
    (f"train {PHANTOM} dataset.num_training=0", ("dataset.num_training=0", "from 1 on")),
    (f"train {PHANTOM} dataset.num_training=3 fold=all", ("dataset.num_training=3", "fold=all")),
    (f"train {PHANTOM} augmentation=strong augmentation.device=gpu", ("augmentation.device=gpu", "cutmix")),
    (f"prepare {PHANTOM} explain=loudly", ("explain=loudly", "true or false")),
    (f"prepare {PHANTOM} explian=true", ("Did you mean 'explain'",)),
    (f"describe {PHANTOM} num_classes=0", ("num_classes=0", "from 1 on")),
    ("describe checkpoint=none.ckpt", ("checkpoint=none.ckpt", "no such file")),
    ("predict input=. output=o", ("checkpoint", "required")),
    ("predict checkpoint=none.ckpt input=. output=o", ("checkpoint=none.ckpt", "no such file")),
    ("predict checkpoint=[] input=. output=o", ("checkpoint=[]", "[a.ckpt,b.ckpt]")),
    ("predict checkpoint=. input=nowhere output=o", ("input=nowhere", "no such file")),
    ("predict checkpoint=. input=. output=o tile_step_size=2", ("tile_step_size=2", "up to 1")),
    ("predict checkpoint=. input=. output=o instances=cells", ("instances=cells", "watershed")),
    ("predict checkpoint=. input=. output=o device=gpu:zero", ("device=gpu:zero", "cuda:1")),
    ("predict checkpoint=. input=. output=o precision=half", ("precision=half", "16-mixed")),
    ("predict checkpoint=. input=. output=o export=[dicom]", ("export=['dicom']", "dicom_seg")),
    ("predict checkpoint=. input=. output=o reproducible=true device=cuda", ("reproducible=true", "device=cpu")),
    ("verify", ("predictions", "required")),
    ("verify nowhere", ("predictions=nowhere", "no such file")),
    ("verify . device=gpu:zero", ("device=gpu:zero", "cuda:1")),
    ("predict checkpoint=. input=. output=o max_memory_gb=0", ("max_memory_gb=0", "above 0")),
    ("predict checkpoint=. input=. output=o workers=0", ("workers=0", "from 1 on")),
    ("predict checkpoint=. input=. output=o post_processing=p.json", ("post_processing=p.json", "no such file")),
    ("predict checkpoint=. input=. ouput=o", ("Did you mean 'output'",)),
    ("evaluate predictions=nowhere truth=. output=o", ("predictions=nowhere", "no such file")),
    ("evaluate predictions={a:nowhere} truth=. output=o", ("predictions.a=nowhere", "no such folder")),
    ("evaluate predictions=. truth=. output=o protocol=flare", ("protocol=flare", "abdomen")),
    ("evaluate predictions=. truth=. output=o iou_threshold=50", ("iou_threshold=50", "up to 1")),
    ("find_best candidates=[] raw_dataset=. output=o", ("candidates=[]", "runs/<experiment>")),
    ("find_best candidates=[nowhere] raw_dataset=. output=o", ("candidates", "no such file")),
    ("find-best candidates=[.] raw_dataset=. output=o checkpoint=newest", ("checkpoint=newest", "last")),
    ("audit runs=nowhere raw_dataset=. output=o", ("runs=nowhere", "no such file")),
    ("audit runs=[] raw_dataset=. output=o", ("runs=[]", "runs/<experiment>")),
    ("audit runs=. raw_dataset=. output=o review_from=0", ("review_from=0", "above 0")),
    ("calibrate output=o", ("candidates, checkpoint", "give one of them")),
    ("calibrate candidates=[.] output=o", ("raw_dataset: candidates needs raw_dataset=FOLDER",)),
    ("calibrate candidates=[.] raw_dataset=. output=o coverage=90", ("coverage=90", "below 1")),
    ("predict checkpoint=. input=. output=o quality=q.json", ("quality=q.json", "no such file")),
    ("predict checkpoint=. input=. output=o review_below=0.8", ("review_below=0.8", "quality=FILE")),
    ("convert archive=flair source=.", ("archive=flair", "Did you mean flare")),
    ("convert archive=flare source=nowhere", ("source=nowhere", "no such file")),
    ("convert archive=endovis source=. videos=all", ("videos=all", "official")),
    ("export checkpoint=none.ckpt output=o", ("checkpoint=none.ckpt", "no such file")),
    ("probe checkpoint=. images=. output=o most=0", ("most=0", "from 1 on")),
    ("export checkpoint=. output=o fold=five", ("fold=five", "or all")),
    ("report study=table9", ("table9", "table4_2d")),
    ("report output=o", ("study", "required")),
]


def test_the_table_holds_enough_of_each_kind() -> None:
    assert len(WRONG) >= 80
    for group in ("dataset", "plan", "planner", "architecture", "recipe", "augmentation", "data", "trainer", "logger"):
        assert sum(f" {group}." in line for line, _ in WRONG) >= 2, group
    assert {line.split()[0].replace("_", "-") for line, _ in WRONG} >= set(COMMANDS)


@pytest.mark.parametrize(("line", "parts"), WRONG, ids=[line for line, _ in WRONG])
def test_a_wrong_command_is_refused_when_it_is_composed(
    line: str, parts: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.process_time()  # not by the clock, because other tests share the cores
    assert main(line.split()) == EXIT_USER_ERROR
    assert time.process_time() - start < LIMIT_S
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert all(part in said for part in parts), said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())  # nothing was made


@pytest.mark.parametrize("line", ["train dataset=phantom predict.checkpoint=lsat", "predict checkpoint=a input=b"])
def test_a_process_ends_within_three_seconds_without_a_traceback(line: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "umamba", *line.split()]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == EXIT_USER_ERROR
    assert "Traceback" not in done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < LIMIT_S


def test_all_mistakes_come_together() -> None:
    wrong = ["predict.checkpoint=lsat", "recipe.ema_momentum=oops", "trainer.compile=sure", "fold=x", "recipe=nnunett"]
    with pytest.raises(InvalidSettings) as caught:
        settings_of(settings.TrainSettings, ["dataset=phantom", *wrong, "+recipe.gradient_clipnorm=3"])
    assert len(caught.value.problems) == 6


def test_right_commands_are_not_refused() -> None:
    for overrides in (
        ["smoke=true"],
        ["+smoke=true"],
        ["++smoke=true"],
        ["+trainer.fast_dev_run=true"],
        ["trainer.overfit_batches=2"],
        ["recipe.optimizer.name=adamw", "recipe.optimizer.lr=1e-4"],
        ["recipe.gradient_clip_norm=null", "augmentation.rotation=null"],
        ["architecture=umamba_enc", "architecture.mamba_stages=[0,2]"],
        ["trainer=ddp", "trainer.devices=2", "trainer.num_nodes=2"],
        ["architecture=swinunetr", "architecture.monai_compat=1.6"],
    ):
        assert settings_of(settings.TrainSettings, ["dataset=phantom", *overrides])
    for sweep in (
        ["fold=0,1,all", "recipe=nnunet,unetr"],
        ["experiment=glob([flare_*,amos*],exclude=*_unet)", "seed=range(3)"],
    ):
        assert not sweep_problems(settings.TrainSettings, ["dataset=phantom", *sweep])


def test_smoke_is_the_same_with_and_without_a_plus() -> None:
    plain, plus = (
        settings_of(settings.TrainSettings, ["dataset=phantom", text]) for text in ("smoke=true", "+smoke=true")
    )
    assert plain == plus
    assert plain.smoke
