/*
 * Floating point as compilers emit it: the same file runs on the host's CPU and on ours, and must write the same bytes. No library: a start,
 * two system calls, and results in one buffer. The last word is MXCSR, whose flags say what was ever raised.
 */
typedef unsigned int u32;
typedef unsigned long u64;

static u64 results[4096];
static int count;

static void put_double(double value) { __builtin_memcpy(&results[count++], &value, 8); }
static void put_float(float value)
{
	u32 bits;
	__builtin_memcpy(&bits, &value, 4);
	results[count++] = bits;
}

static long system_call(long number, long a, long b, long c)
{
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}

void *memset(void *to, int byte, u64 length)
{
	char *at = to;
	while (length--) *at++ = byte;
	return to;
}
void *memcpy(void *to, const void *from, u64 length)
{
	char *at = to;
	const char *source = from;
	while (length--) *at++ = *source++;
	return to;
}

struct body { double x, y, z, vx, vy, vz, mass; };
static struct body bodies[4] = {
	{0, 0, 0, 0, 0, 0, 39.47},
	{4.84, -1.16, -.10, .6, 2.8, -.02, .037},
	{8.34, 4.12, -.4, -1.01, 1.82, .008, .011},
	{12.89, -15.11, -.22, 1.08, .86, -.01, .0017},
};

static void gravity(int steps)
{
	for (int step = 0; step < steps; step++) {
		for (int i = 0; i < 4; i++)
			for (int j = i + 1; j < 4; j++) {
				struct body *a = &bodies[i], *b = &bodies[j];
				double dx = a->x - b->x, dy = a->y - b->y, dz = a->z - b->z;
				double square = dx * dx + dy * dy + dz * dz;
				double pull = .01 / (square * __builtin_sqrt(square));
				a->vx -= dx * b->mass * pull, a->vy -= dy * b->mass * pull, a->vz -= dz * b->mass * pull;
				b->vx += dx * a->mass * pull, b->vy += dy * a->mass * pull, b->vz += dz * a->mass * pull;
			}
		for (int i = 0; i < 4; i++) {
			struct body *a = &bodies[i];
			a->x += .01 * a->vx, a->y += .01 * a->vy, a->z += .01 * a->vz;
		}
	}
	for (int i = 0; i < 4; i++) put_double(bodies[i].x), put_double(bodies[i].vy);
}

static float singles[3][32][32];
static double doubles[3][32][32];

static void matrices(void)
{
	for (int i = 0; i < 32; i++)
		for (int j = 0; j < 32; j++) {
			singles[0][i][j] = (i * 7 + j) % 13 / 3.0f, singles[1][i][j] = 1.0f / (i + j + 1);
			doubles[0][i][j] = (i ^ j) * .3, doubles[1][i][j] = 1.0 / (i + j + 1);
		}
	for (int i = 0; i < 32; i++)
		for (int k = 0; k < 32; k++)
			for (int j = 0; j < 32; j++) {
				singles[2][i][j] += singles[0][i][k] * singles[1][k][j];
				doubles[2][i][j] += doubles[0][i][k] * doubles[1][k][j];
			}
	for (int i = 0; i < 32; i++) put_float(singles[2][i][31 - i]), put_double(doubles[2][i][31 - i]);
}

static double exponential(double x)
{
	double sum = 1, term = 1;
	for (int i = 1; i < 30; i++) term *= x / i, sum += term;
	return sum;
}

static int escape(double cx, double cy)
{
	double x = 0, y = 0;
	int round = 0;
	for (; round < 200 && x * x + y * y < 4; round++) {
		double next = x * x - y * y + cx;
		y = 2 * x * y + cy, x = next;
	}
	return round;
}

static volatile double d;
static volatile float f;
static volatile long l;
static volatile int i32;
static volatile u32 unsigned32;
static volatile u64 unsigned64;

static void conversions(int i)
{
	put_double(exponential(i * .7));
	d = i * 1234567.891;
	results[count++] = (long)d, results[count++] = (int)d;
	f = (float)d;
	put_float(f), put_double((double)f), results[count++] = (u32)(long)f;
	l = (long)i * 0x123456789abcdl, put_double(l), put_float(l);
	i32 = i * 77777, put_double(i32), put_float(i32);
	unsigned32 = i * 99999999u, put_double(unsigned32), put_float(unsigned32);
	unsigned64 = (u64)i * 0x9e3779b97f4a7c15ul, put_double(unsigned64), put_float(unsigned64);
	put_double(__builtin_floor(d)), put_double(__builtin_ceil(d)), put_double(__builtin_trunc(d));
	put_double(__builtin_rint(d)), put_float(__builtin_floorf(f)), put_float(__builtin_rintf(f));
	put_double(__builtin_fabs(d)), put_double(__builtin_copysign(d, -i));
}

static const double special[] = {0.0, -0.0, 1, -1, __builtin_inf(), -__builtin_inf(), __builtin_nan(""),
	1e-310, 1e308, 5e-324, 3.5};

static void specials(void)
{
	for (int i = 0; i < 11; i++)
		for (int j = 0; j < 11; j++) {
			volatile double a = special[i], b = special[j];
			results[count++] = (a < b) | (a <= b) << 1 | (a > b) << 2 | (a >= b) << 3 | (a == b) << 4 |
				(a != b) << 5 | __builtin_isunordered(a, b) << 6 | __builtin_islessgreater(a, b) << 7;
			put_double(a + b), put_double(a - b), put_double(a * b), put_double(a / b);
			put_double(a < b ? a : b), put_double(a > b ? a : b), put_float((float)a);
		}
}

static void vectors(void)
{
	float sums[16] = {0};
	int integers[64];
	for (int k = 0; k < 500; k++)
		for (int i = 0; i < 16; i++) sums[i] = sums[i] * .99f + (float)(k ^ i) / (1 + i);
	for (int i = 0; i < 16; i++) put_float(sums[i]);
	for (int i = 0; i < 64; i++) integers[i] = (int)(sums[i % 16] * i);
	for (int i = 0; i < 64; i += 7) results[count++] = integers[i];
	float roots = 0;
	for (int i = 1; i < 1000; i++) roots += 1.0f / __builtin_sqrtf((float)i * 1.7f);
	put_float(roots);
}

__attribute__((force_align_arg_pointer)) void _start(void)
{
	u32 mxcsr;
	gravity(200);
	matrices();
	for (int i = 0; i < 40; i++) results[count++] = escape(-2 + i * .07, -1 + i * .05);
	for (int i = -20; i < 20; i++) conversions(i);
	specials();
	vectors();
	__asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
	results[count++] = mxcsr;
	system_call(1, 1, (long)results, count * 8);
	system_call(60, 0, 0, 0);
}
