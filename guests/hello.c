/* The smallest guest: a line, and success. */
#include "guest.h"

int main(void) {
    put_text("hello from hart ");
    put_hex(read_csr(mhartid));
    put_text("\n");
    return 0;
}
