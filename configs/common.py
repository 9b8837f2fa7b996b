"""What the training configs share: presets, the data block and the optimiser recipe.

A preset is a size of machine, not another method:
  tiny   seconds, for tests
  quick  minutes on 2 CPU cores: the quickstart
  cpu    under an hour a method on 2 CPU cores, 2 mm pixels
  cpu1mm the same at 1 mm, where a network on pixels has 4 times as much to compute
  a6000  paper scale, 256 x 256 at 1 mm, one 48 GB GPU (the default)
  multi  the same on several GPUs or hosts
"""

import ml_collections

PRESETS = ("tiny", "quick", "cpu", "cpu1mm", "a6000", "multi")
# Whose value a preset has that has none of its own.
PARENTS = {"tiny": "cpu", "quick": "cpu", "cpu1mm": "cpu", "multi": "a6000"}


def pick(preset: str, **choices):
    """The value of `preset`; without one of its own, that of the preset it varies, else of a6000."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
    if preset not in choices:
        preset = PARENTS.get(preset, "a6000")
    return choices.get(preset, choices["a6000"])


def dtype(preset: str) -> str:
    """Of a network's arithmetic."""
    return pick(preset, cpu="float32", a6000="bfloat16")


def data(preset: str) -> ml_collections.ConfigDict:
    """Which slices a run reads. With `prepared` empty, the phantom below is simulated on first use."""
    from configs import prepare, simulate

    c = ml_collections.ConfigDict()
    c.prepared = ""  # folder of a prepared dataset (configs/prepare.py); "" = the embedded phantom
    c.root = f"runs/data/{preset}"  # where the embedded phantom is kept
    c.simulate = simulate.get_config(preset)
    c.prepare = prepare.get_config(preset)
    c.kind = "images"  # "images" | "latents"
    c.source = "pet"  # "pet" | "nac" (without attenuation correction, of people who have one)
    c.targets = ()  # of ct, mr: () = all that the training people have; the autoencoder adds pet
    c.source_kind = "image"  # "image" | "latent" (the source as the autoencoder's latent)
    c.context = 3  # PET slices given as source: z-1, z, z+1
    c.train_slice_stride = 1
    # Slices of the training on the device, decoded in the step: "auto" (on a GPU, where they fit into
    # its free memory) | "always" | "never" (batches from reader threads)
    c.on_device = "auto"
    c.paired = True  # False: each source comes with the target of another slice (CycleGAN)
    return c


def train(preset: str) -> ml_collections.ConfigDict:
    """Batch, cadence and reader; numbers of steps are each method's own."""
    c = ml_collections.ConfigDict()
    c.batch_size = pick(preset, tiny=4, cpu=8, a6000=32, multi=128)  # global
    c.num_train_steps = 0  # set by the method's config
    # For the warning on a machine without a GPU: seconds a step of preset a6000 would take on 2 CPU
    # cores, the measured step of preset cpu scaled by arithmetic; 0 where the preset is meant for CPUs.
    c.cpu_step_seconds = 0.0
    # Steps handed to the device at once, cut so that no call runs across a step at which something is due
    c.steps_per_call = 1
    c.log_every = pick(preset, tiny=1, quick=20, cpu=50, a6000=100)  # steps
    c.val_every = pick(preset, tiny=10, quick=300, cpu=1000, a6000=5000)  # steps
    c.save_every = pick(preset, tiny=10, quick=200, cpu=500, a6000=2000)  # steps
    # every n-th slice of val people
    c.val_slice_stride = pick(preset, tiny=2, quick=6, cpu=8, a6000=20)
    # At the end, where the method draws samples: the spread of so many (0 = not), of every n-th slice of
    # at most so many validation people, is made to fit the error (jobs/calibrate.py).
    c.calibrate_samples = pick(preset, tiny=0, a6000=8)
    c.calibrate_steps = 2  # of DDIM, where the network tells its variance; 0: as for a sample
    c.calibrate_slice_stride = pick(preset, tiny=2, quick=2, cpu=4, cpu1mm=16, a6000=8)
    c.calibrate_people = pick(preset, tiny=2, quick=4, cpu=8, a6000=20)
    # slices to fit constants on
    c.init_items = pick(preset, tiny=24, quick=256, a6000=512)
    c.num_threads = 2  # reader threads
    c.num_workers = 0  # reader processes; on 2 cores they do not pay
    return c


def init() -> ml_collections.ConfigDict:
    """Weights from elsewhere to begin with; with train.num_train_steps=0 they are only imported."""
    c = ml_collections.ConfigDict()
    c.weights = ""  # file of a MONAI network of these settings (.pt, .safetensors); "" = none
    c.key = ""  # which of the file's state dicts, where it holds several that fit
    return c


def optim(learning_rate: float, ema_decay: float) -> ml_collections.ConfigDict:
    """Warm-up, decay to the last step; see runtime/optim.py."""
    c = ml_collections.ConfigDict()
    c.optimizer = "muon"  # muon | adamw
    c.learning_rate = learning_rate
    c.b1, c.b2 = 0.9, 0.99
    c.warmup_steps = 50
    c.decay = "cosine"  # cosine | second_half (constant, then linear)
    c.weight_decay = 1e-4
    c.clip_norm = 1.0
    c.accumulate = 1  # parts of a batch whose gradients are averaged: less memory, the same update
    c.ema_decay = ema_decay
    return c


def base(job: str, name: str, preset: str) -> ml_collections.ConfigDict:
    pick(preset, a6000=None)  # refuses an unknown preset
    c = ml_collections.ConfigDict()
    c.job, c.preset = job, preset
    c.name = name  # of the run, as reports call it
    c.seed = 0
    # CPU convolutions: "native" (compiled with the machine's C++ compiler on first use; without one, as
    # "xla") or "xla" (slower, the same to float rounding). No effect on a GPU.
    c.kernels = "native"
    return c
