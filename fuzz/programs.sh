# Sourced by run.sh and save.sh. Sets TARGETS to the targets that the arguments name, or to all. Builds them and sets PROGRAMS to
# the folder of the programs, unless PROGRAMS names the folder of programs that are built already.
cd "$(dirname "${BASH_SOURCE[0]}")"
TARGETS=${*:-$(cargo +nightly fuzz list)}
if [ -z "${PROGRAMS:-}" ]; then
    cargo +nightly fuzz build >&2 || exit 1
    PROGRAMS=${CARGO_TARGET_DIR:-target}/$(rustc -vV | sed -n 's/^host: //p')/release
fi
