/* How many processors there may be, and how large the stack of each is: a power of two. */
#define MAX_PROCESSORS 16
#define STACK_SHIFT 14
