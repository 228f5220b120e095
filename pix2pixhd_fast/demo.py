"""The demo: draw a data set, train a small G1+G2+D+E on it, show what it learnt."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pix2pixhd_fast.data.synthetic import scene, write_dataset
from pix2pixhd_fast.features.encoding import FeatureEncoder
from pix2pixhd_fast.inference.full_size import Measurement, measure_paper_size
from pix2pixhd_fast.inference.synthesizer import Pictures, Synthesizer
from pix2pixhd_fast.model import Pix2PixHD
from pix2pixhd_fast.options import Options
from pix2pixhd_fast.report import Page, save_picture
from pix2pixhd_fast.training.progress import progress_bar
from pix2pixhd_fast.training.trainer import Trainer

WIDTH, HEIGHT = 256, 128
TRAIN, TEST = 120, 6
LEAST_EPOCHS, MOST_EPOCHS = 2, 8
STYLES = 6
PATIENCE = 1.4  # training ends after so many times the minutes, where the machine got slower
NETWORKS = dict(
    netG="local",
    ngf=16,
    n_downsample_global=3,
    n_blocks_global=4,
    n_blocks_local=2,
    instance_feat=True,
    nef=8,
    n_downsample_E=3,
)
TRAINING = dict(
    ndf=24,
    n_layers_D=2,
    lr=1e-3,
    lambda_feat=40.0,
    no_vgg_loss=True,
    print_freq=20,
    display_freq=60,
)


@dataclass(frozen=True)
class Demo:
    """The demo in `folder`: about `minutes` of training, drawn and initialised by `seed`."""

    folder: Path
    minutes: float = 4.5
    seed: int = 0
    device: str = "auto"

    def run(self) -> Path:
        """Do all of it; return the path of `index.html`."""
        start = time.perf_counter()
        self._draw()
        epochs = self._affordable_epochs()
        trainer = Trainer(Options(**self._common(), **self._training(epochs)))
        trainer.run(self.minutes * PATIENCE)
        rows = dict(self._synthesizer(use_encoded_image=True).pictures())
        FeatureEncoder(Options(isTrain=False, phase="train", **self._common())).encode()
        _, styles = next(self._synthesizer(styles=STYLES).pictures())
        print(
            "running the generator of the paper once at 2048x1024 (random weights) ...", flush=True
        )
        measured = self._paper_size()
        print(
            f"2048x1024 on {measured.device}: {measured.seconds:.1f} s, "
            f"peak memory {measured.memory:.2f} GiB"
        )
        minutes = (time.perf_counter() - start) / 60
        facts = self._facts(trainer, measured, minutes)
        return self._write_page(rows, styles, trainer.folder / "loss_curves.png", facts)

    def _common(self) -> dict:
        return dict(
            name="street",
            dataroot=str(self.folder / "data"),
            checkpoints_dir=str(self.folder / "checkpoints"),
            resize_or_crop="none",
            seed=self.seed,
            device=self.device,
            nThreads=0,
            **NETWORKS,
        )

    @staticmethod
    def _training(epochs: int) -> dict:
        return dict(niter=epochs // 2, niter_decay=epochs - epochs // 2, **TRAINING)

    def _draw(self) -> None:
        with progress_bar(TRAIN + TEST, unit="scene", description="draw scenes") as bar:
            write_dataset(
                self.folder / "data",
                TRAIN,
                TEST,
                WIDTH,
                HEIGHT,
                self.seed,
                lambda done: bar.update(),
            )

    def _affordable_epochs(self) -> int:
        """Epochs that fit into `minutes`, by a quick one of a few steps of a throw-away model."""
        model = Pix2PixHD(Options(**self._common(), **self._training(LEAST_EPOCHS)))
        label = torch.zeros(1, 1, HEIGHT, WIDTH, dtype=torch.uint8)
        batch = {"label": label, "inst": label.int(), "image": torch.zeros(1, 3, HEIGHT, WIDTH)}
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            model.training_step(batch)["G_GAN"].item()
            seconds.append(time.perf_counter() - start)
        epochs = int(self.minutes * 60 / (sorted(seconds)[2] * TRAIN))
        return min(max(epochs, LEAST_EPOCHS), MOST_EPOCHS)

    def _synthesizer(self, **flags) -> Synthesizer:
        results = str(self.folder / "results")
        return Synthesizer(Options(isTrain=False, results_dir=results, **flags, **self._common()))

    def _paper_size(self) -> Measurement:
        street = scene(2048, 1024, self.seed)
        label, inst = (torch.from_numpy(m)[None, None] for m in (street.label, street.inst))
        return measure_paper_size(label, inst, self.device)

    def _facts(
        self, trainer: Trainer, measured: Measurement, minutes: float
    ) -> list[tuple[str, str]]:
        return [
            ("training", f"{trainer.total_images} steps on {TRAIN} drawn scenes, {WIDTH}x{HEIGHT}"),
            ("networks", "G1 + G2 (ngf 16), two discriminators, encoder; no VGG loss"),
            ("paper's generator at 2048x1024", f"{measured.seconds:.1f} s a picture"),
            ("its peak memory", f"{measured.memory:.2f} GiB"),
            ("measured on", f"{measured.device}, {torch.get_num_threads()} threads"),
            ("whole demo", f"{minutes:.1f} minutes"),
        ]

    def _write_page(
        self,
        rows: dict[str, Pictures],
        styles: Pictures,
        curves: Path,
        facts: list[tuple[str, str]],
    ) -> Path:
        page = Page(self.folder, "pix2pixhd_fast: demo")
        page.text(
            "Drawn street scenes that the networks have not seen: the label map they are given, "
            "the picture they make of it, and the drawing. Colours of objects come from the "
            "drawing, through the encoder, as one mean per object."
        )
        for number, pictures in enumerate(rows.values(), start=1):
            page.header(f"Scene {number}")
            _add_pictures(page, pictures, str(number), 2 * WIDTH)
        page.header("Styles")
        page.text(
            "One label map, several pictures: every object is given the features of one of the "
            "clusters of its class, drawn anew for each picture. No drawing is looked at."
        )
        _add_pictures(page, styles, "styles", WIDTH)
        if curves.is_file():  # a training too short to log losses has none
            (page.images / "losses.png").write_bytes(curves.read_bytes())
            page.header("Losses")
            page.figure("losses.png", "losses of the training")
        page.header("Figures")
        page.table(("what", "value"), facts)
        page.save()
        save_picture(contact_sheet(list(rows.values())[:3]), self.folder / "pictures.png")
        save_picture(contact_sheet(in_rows(styles)), self.folder / "styles.png")
        return self.folder / "index.html"


def _add_pictures(page: Page, pictures: Pictures, prefix: str, width: int) -> None:
    """Save the pictures and add a row of them."""
    for what, array in pictures.items():
        save_picture(array, page.images / f"{prefix}_{what}.png")
    names = [(f"{prefix}_{what}.png", what.replace("_", " ")) for what in pictures]
    page.pictures(names, width)


def in_rows(styles: Pictures, columns: int = 3) -> list[Pictures]:
    """The synthesised pictures, without what they were made of, a few in each row."""
    made = [(what, array) for what, array in styles.items() if what.startswith("style_")]
    return [dict(made[i : i + columns]) for i in range(0, len(made), columns)]


def contact_sheet(rows: list[Pictures]) -> np.ndarray:
    """Pictures of equal size in a grid, a row per sample, twice enlarged: uint8 [H, W, 3]."""
    grid = np.concatenate([np.concatenate(list(row.values()), axis=1) for row in rows], axis=0)
    return grid.repeat(2, axis=0).repeat(2, axis=1)
