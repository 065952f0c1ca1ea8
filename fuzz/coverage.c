/* What libFuzzer asks a sanitizer's runtime to be able to print its coverage: here a place in the code is told as its
   offset in the program. `cargo xtask fuzz --coverage` builds this as a library and has it loaded first. */
#define _GNU_SOURCE
#include <link.h>
#include <stdint.h>
#include <stdio.h>

/* The first object is the program itself. */
static int first_object(struct dl_phdr_info *object, size_t size, void *base) {
    (void)size;
    *(uintptr_t *)base = object->dlpi_addr;
    return 1;
}

static uintptr_t offset_of(void *pc) {
    static uintptr_t base;
    if (!base) dl_iterate_phdr(first_object, &base);
    return (uintptr_t)pc - base;
}

void __sanitizer_symbolize_pc(void *pc, const char *format, char *text, size_t size) {
    (void)format;
    snprintf(text, size, "0x%lx", (unsigned long)offset_of(pc));
}

int __sanitizer_get_module_and_offset_for_pc(void *pc, char *module, size_t size, void **offset) {
    snprintf(module, size, "program");
    *offset = (void *)offset_of(pc);
    return 1;
}
