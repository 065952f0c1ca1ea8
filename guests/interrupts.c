/* Timer, software and external interrupts: that they come, in order, to the right mode, with the right cause. */
#include "guest.h"

#define CLINT 0x2000000
#define MSIP ((volatile u32 *)CLINT)
#define MTIMECMP ((volatile u64 *)(CLINT + 0x4000))
#define MTIME ((volatile u64 *)(CLINT + 0xbff8))
#define PLIC 0xc000000
#define PLIC32(offset) (*(volatile u32 *)(PLIC + (offset)))

static volatile u64 causes[16];
static volatile int taken;

__attribute__((interrupt("machine"), aligned(4))) void trap_entry(void) {
    u64 cause = read_csr(mcause);
    causes[taken++ & 15] = cause;
    switch (cause) {
    case 1ul << 63 | 7: *MTIMECMP = -1ul; break;
    case 1ul << 63 | 3: *MSIP = 0; break;
    case 1ul << 63 | 11: {
        u32 source = PLIC32(0x200004);
        causes[taken++ & 15] = source;
        UART[1] = 0;
        PLIC32(0x200004) = source;
        break;
    }
    case 1ul << 63 | 5: write_csr(0x14d, -1ul); break;
    default: write_csr(mepc, read_csr(mepc) + 4); break;
    }
}

int main(void) {
    /* A timer that strikes during wfi, at its time. */
    u64 due = *MTIME + 1000;
    *MTIMECMP = due;
    set_csr(mie, 1 << 7);
    set_csr(mstatus, 8);
    while (!taken) asm volatile("wfi");
    expect("timer cause", causes[0], 1ul << 63 | 7);
    expect("timer not early", *MTIME >= due, 1);
    expect("timer not late", *MTIME < due + 100, 1);

    /* A software interrupt strikes at the store. */
    set_csr(mie, 1 << 3);
    *MSIP = 1;
    expect("software taken", taken, 2);
    expect("software cause", causes[1], 1ul << 63 | 3);

    /* The transmitter's interrupt through the interrupt controller. */
    PLIC32(4 * 10) = 1;
    PLIC32(0x2000) = 1 << 10;
    PLIC32(0x200000) = 0;
    set_csr(mie, 1 << 11);
    UART[1] = 2;
    expect("external taken", taken, 4);
    expect("external cause", causes[2], 1ul << 63 | 11);
    expect("external source", causes[3], 10);

    /* The supervisor's timer, not delegated. */
    set_csr(menvcfg, 1ul << 63);
    write_csr(0x14d, *MTIME + 50);
    set_csr(mie, 1 << 5);
    while (taken < 5) asm volatile("wfi");
    expect("supervisor timer cause", causes[4], 1ul << 63 | 5);

    /* A masked interrupt stays pending; wfi returns all the same. */
    clear_csr(mstatus, 8);
    *MSIP = 1;
    asm volatile("wfi");
    expect("masked", taken, 5);
    expect("pending", read_csr(mip) & 8, 8);
    set_csr(mstatus, 8);
    expect("unmasked", taken, 6);

    /* Exceptions: illegal instruction with its bits, breakpoint. */
    asm volatile(".word 0xffffffff");
    expect("illegal", causes[6], 2);
    expect("illegal bits", read_csr(mtval), 0xffffffff);
    asm volatile(".option push\n.option norvc\nebreak\n.option pop");
    expect("breakpoint", causes[7], 3);
    put_line("interrupts", taken);
    return 0;
}
