from megatron_sky.versions import installed, release


def test_releases_compare():
    assert release("2.13.0+cu129") == (2, 13, 0) > release("2.2") and release("2.3.0.dev0") == (2, 3, 0)
    assert release("2.6.0a0+df5bbc09d1.nv24.12") == (2, 6, 0) and release("3.13.0+") == (3, 13, 0)
    assert release(None) == release("a checkout") == ()


def test_an_installed_package_has_a_version_and_another_none():
    assert release(installed("numpy")) and installed("no-such-package-anywhere") is None
