/* /nnp, installed setuid root: says whom it runs as, which no_new_privs decides. */
#include <stdio.h>
#include <unistd.h>

int main(void) {
  printf("Effective uid: %u\n", (unsigned)geteuid());
  return fflush(stdout) ? 1 : 0;
}
