# To be sourced: TARGETS, those that the arguments name or all, built into PROGRAMS unless that says where they lie already.
cd "$(dirname "${BASH_SOURCE[0]}")"
TARGETS=${*:-$(cargo +nightly fuzz list)}
if [ -z "${PROGRAMS:-}" ]; then
    cargo +nightly fuzz build >&2 || exit 1
    PROGRAMS=${CARGO_TARGET_DIR:-target}/$(rustc -vV | sed -n 's/^host: //p')/release
fi
