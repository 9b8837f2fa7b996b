"""Promise 8, bad volumes (tests/test_faults_volumes.py); the commands that several promises run."""

import pathlib

from cldm_jax.data import shards
from cldm_jax.jobs import prepare
from configs import prepare as prepare_config
from faults import ROOT, twins


def prepared(cohort, work, **changes) -> shards.Prepared:
    """The tiny preset's, verified."""
    config = prepare_config.get_config("tiny")
    config.cohort = str(cohort)
    for name, value in changes.items():
        config[name] = value
    prepare.run(config, str(work))
    return shards.Prepared(work, verify=True)


def predicted(path, out) -> list[pathlib.Path]:
    from cldm_jax.jobs import predict

    request = predict.Request(str(path), str(out), checkpoint=str(ROOT), mode="onestep")
    return predict.predict(request)


PROMISES = [
    twins.promise(
        8,
        "bad volumes are refused by name, unusual ones handled",
        (
            "test_faults_volumes.py::test_kind",
            "test_faults_volumes.py::test_command",
            "test_predict_grids.py::test_output_is_on_the_inputs_grid",
            "test_predict_grids.py::TestChecks",
            "test_predict_grids.py::TestDicom",
            "test_data_dicom.py::test_transfer_syntaxes",
            "test_data_dicom.py::test_philips_private_factors",
            "test_data_dicom.py::test_zip_equals_folder",
            "test_data_dicom.py::test_zip_bomb_is_refused_by_its_declared_size",
            "test_data_dicom.py::test_lying_encrypted_and_damaged_zips",
            "test_data_audit.py::test_bad_manifests",
            "test_prepare.py::test_one_bad_entry_does_not_stop_the_others",
            "test_faults_volumes.py::test_a_dataset_goes_on_and_lists_what_failed",
            "test_faults_volumes.py::TestMutants",
        ),
        ("test_faults_volumes.py::test_flipped_bits_pass_through_another_reader",),
        CLDM_FUZZ_EXAMPLES="3000",  # mutants, of each kind of file
    ),
]
