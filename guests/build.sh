#!/bin/sh
# Builds every guest into built/ and writes down the compiler that did. Needs gcc-riscv64-unknown-elf.
set -eu
cd "$(dirname "$0")"
mkdir -p built
cc=riscv64-unknown-elf-gcc
flags="-O2 -ffreestanding -nostdlib -nostartfiles -static -mcmodel=medany -fno-tree-loop-distribute-patterns
    -march=rv64gc_zba_zbb_zbc_zbs -mabi=lp64d -ffp-contract=off -Wall -Wextra -Werror -T link.ld -Wl,--build-id=none"
for source in hello bench isa streams interrupts pages privileged disk reset reboot; do
    # shellcheck disable=SC2086
    $cc $flags start.S "$source.c" -o "built/$source.elf" -lgcc
    riscv64-unknown-elf-strip "built/$source.elf"
done
# The same work, one kind at a time and longer.
for rounds in integer:6000:0:0 memory:0:10000000:0 floating:0:0:10000000; do
    IFS=: read -r name integer memory floating <<EOF
$rounds
EOF
    # shellcheck disable=SC2086
    $cc $flags "-DINTEGER=$integer" "-DMEMORY=$memory" "-DFLOATING=$floating" start.S bench.c -o "built/bench-$name.elf" -lgcc
    riscv64-unknown-elf-strip "built/bench-$name.elf"
done
$cc --version | head -n 1 > built/compiler
