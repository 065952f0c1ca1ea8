/* Resets the board twice. Each boot must find devices, variables and the hart as the first did, and memory that nothing is
   loaded into as the boot before left it. */
#include "guest.h"

#define KEPT ((volatile u64 *)0x80700000) /* boots so far */
#define MSIP ((volatile u32 *)0x2000000)
#define MTIMECMP ((volatile u64 *)0x2004000)
#define PLIC ((volatile u32 *)0xc000000)
#define MIE_ALL 0x888

static u64 zeroed[600];
static u64 initial = 7;

static void look(void) {
    expect("bss", zeroed[0] | zeroed[599], 0);
    expect("data", initial, 7);
    expect("msip", *MSIP, 0);
    expect("mip", read_csr(mip) & 8, 0);
    expect("plic priority", PLIC[10], 0);
    expect("plic enable", PLIC[0x2000 / 4], 0);
    expect("uart interrupts", UART[1], 0);
    expect("uart scratch", UART[7], 0);
}

static void touch(void) {
    zeroed[0] = zeroed[599] = initial = 1;
    *MSIP = 1;
    *MTIMECMP = 5;
    PLIC[10] = 3;
    PLIC[0x2000 / 4] = 1 << 10;
    UART[1] = 2;
    UART[7] = 0x5a;
    write_csr(mie, MIE_ALL);
}

int main(void) {
    put_line("boot", *KEPT);
    look();
    if (*KEPT == 2) return 0;
    (*KEPT)++;
    touch();
    *FINISHER = 0x7777;
    for (;;) asm volatile("wfi");
}
