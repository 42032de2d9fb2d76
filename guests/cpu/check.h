/* What every group of instructions counts on: values to try, and a verdict. */
#ifndef CHECK_H
#define CHECK_H
#include "guest.h"

/* The arithmetic flags: CF PF AF ZF SF OF. */
#define CF 0x001ul
#define PF 0x004ul
#define AF 0x010ul
#define ZF 0x040ul
#define SF 0x080ul
#define OF 0x800ul
#define ARITHMETIC (CF | PF | AF | ZF | SF | OF)

/* Counts a difference; the first of a group is printed. */
void expect(const char *what, u64 got, u64 want);
/* The next of a fixed sequence of values, with a liking for those at the edges. */
u64 value(void);

void integers(void);
void bits(void);
void multiplication(void);
void strings(void);
void exchanges(void);
void stacks(void);
void floats(void);
void conversions(void);
void packed_integers(void);
void shuffles(void);
void text(void);
void crypto(void);

#endif
