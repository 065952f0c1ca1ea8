# Entry in machine mode: floating point on, stack, main. Traps go to trap_entry, which a guest may define.
    .section .text.start
    .globl _start
_start:
    csrr    t0, mhartid
    bnez    t0, park
    la      sp, stack_top
    li      t0, 0x6000
    csrs    mstatus, t0
    la      t0, trap_entry
    csrw    mtvec, t0
    call    main
    mv      a1, a0
    slli    a1, a1, 16
    li      t0, 0x3333
    or      t0, t0, a1
    bnez    a0, 1f
    li      t0, 0x5555
1:  li      t1, 0x100000
    sw      t0, 0(t1)
park:
    wfi
    j       park

    .weak   trap_entry
    .align  2
trap_entry:
    li      t0, 0x00633333
    li      t1, 0x100000
    sw      t0, 0(t1)
    j       park

    .bss
    .align  4
    .space  65536
stack_top:
