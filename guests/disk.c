/* A virtio block device on the memory-mapped transport: write, read back, flush, out of range. */
#include "virtio.h"

int main(void) {
    u64 base = start_disk();
    u64 sectors = *(volatile u64 *)(base + 0x100), seed = 5;
    put_line("sectors", sectors);
    for (u64 sector = 0; sector + 2 <= sectors; sector += 7) {
        for (int i = 0; i < 128; i++) buffer[i] = next_random(&seed);
        expect("write", request(base, 1, sector, 1024), 0);
    }
    expect("flush", request(base, 4, 0, 0), 0);
    seed = 5;
    for (u64 sector = 0; sector + 2 <= sectors; sector += 7) {
        for (int i = 0; i < 128; i++) buffer[i] = 0;
        expect("read", request(base, 0, sector, 1024), 0);
        for (int i = 0; i < 128; i++) expect("content", buffer[i], next_random(&seed));
    }
    expect("past the end", request(base, 0, sectors, 512), 1);
    expect("unknown request", request(base, 77, 0, 512), 2);
    put_line("requests", available[1]);
    return 0;
}
