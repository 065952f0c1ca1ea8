/* Resets the board while disk requests are in flight. A write that was handed over arrives all the same, before whatever the
   next boot asks for; of a request that the reset forgot nothing comes into memory any more. */
#include "virtio.h"

/* Memory that a boot leaves as it is: boots so far, and room for a read that must not arrive. */
#define KEPT ((volatile u64 *)0x80700000)
#define ROOM ((volatile u64 *)0x80701000)

enum { BOOTS = 4, SECTOR = 3, OTHER = 40 };

static void wait(u64 instructions) {
    for (u64 end = read_csr(minstret) + instructions; read_csr(minstret) < end;) {}
}

static void hand_over_write(u64 base, u64 sector, u64 pattern) {
    for (int i = 0; i < 128; i++) buffer[i] = pattern + i;
    submit(base, 1, sector, 1024);
}

/* The rings start anew, so a second request in flight needs a descriptor chain of its own. */
static void hand_over_read(u64 base) {
    static struct { u32 type, reserved; u64 sector; } second = {0, 0, OTHER};
    descriptors[4] = (struct descriptor){(u64)&second, 16, 1, 5};
    descriptors[5] = (struct descriptor){(u64)ROOM, 1024, 3, 6};
    descriptors[6] = (struct descriptor){(u64)&ROOM[200], 1, 2, 0};
    available[2 + available[1] % QUEUE] = 4;
    asm volatile("fence" ::: "memory");
    available[1]++;
    asm volatile("fence" ::: "memory");
    REG(base, 0x50) = 0;
}

int main(void) {
    u64 boot = KEPT[0], base = start_disk();
    put_line("boot", boot);
    if (boot == 0) {
        for (int i = 0; i < 128; i++) buffer[i] = 0x77;
        expect("other sectors", request(base, 1, OTHER, 1024), 0);
        for (int i = 0; i < 256; i++) ROOM[i] = 0x1234;
    } else {
        for (int i = 0; i < 128; i++) buffer[i] = 0;
        expect("read after a reset", request(base, 0, SECTOR, 1024), 0);
        for (int i = 0; i < 128; i++) expect("what was in flight", buffer[i], (boot << 32) + i);
        wait(200000);
        for (int i = 0; i < 256; i++) expect("nothing arrives late", ROOM[i], 0x1234);
        expect("one answer for one request", used.index, 1);
    }
    if (boot + 1 == BOOTS) {
        expect("sectors forgotten are still there", request(base, 0, OTHER, 1024), 0);
        expect("their content", buffer[127], 0x77);
        return 0;
    }
    KEPT[0] = boot + 1;
    hand_over_write(base, SECTOR, (boot + 1) << 32);
    hand_over_read(base);
    wait(boot * 15000);
    /* Each boot cuts at another instant: at once, before, and behind what the requests take. */
    for (int i = 0; boot == 2 && i < 256; i++) ROOM[i] = 0x1234;
    *FINISHER = 0x7777;
    for (;;) asm volatile("wfi");
}
