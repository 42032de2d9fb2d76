/** The CLI as a user has it: dist/cli.js in a process of its own, and a stranger's C file. */
import { spawn, spawnSync } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';

const cli = new URL('../../dist/cli.js', import.meta.url).pathname;
const folder = mkdtempSync(join(tmpdir(), 'softcvm-stranger-'));
afterAll(() => rmSync(folder, { recursive: true }));

const softcvm = (...arguments_: string[]) => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, ...arguments_], {
    encoding: 'utf8',
    cwd: folder,
  });
  return { status, stdout, stderr };
};

describe('softcvm', () => {
  it('runs a guest by name from any folder', () => {
    expect(softcvm('run', 'hello')).toEqual({
      status: 0,
      stdout: 'Hello from a guest: vCPU 0, CPL 0, 64 MiB of RAM, CPU AuthenticAMD.\n',
      stderr: '',
    });
  });

  it('ends with 2 and a message for what it does not understand', () => {
    const damaged = join(folder, 'state');
    const chip = join(damaged, 'chips/milan-00.json');
    mkdirSync(dirname(chip), { recursive: true });
    writeFileSync(chip, '{');
    for (const [arguments_, message] of [
      [['run'], "missing required argument 'image'"],
      [['run', 'hello', '--bogus'], "unknown option '--bogus'"],
      [['walk'], "unknown command 'walk'"],
      [['run', './absent.elf'], './absent.elf: no such file'],
      [['run', 'hello', '--memory', 'much'], '--memory: got much'],
      [['certs', 'chips', '--state', damaged], `${chip}: file: got "{", want JSON`],
      [['kds', '--port', '0', '--state', damaged], `${chip}: file: got "{", want JSON`],
      [['run', 'attester', '--type', 'sev-snp', '--state', damaged], `${chip}: file: got "{", want JSON`],
    ] as const) {
      const { status, stdout, stderr } = softcvm(...arguments_);
      expect({ status, stdout }).toEqual({ status: 2, stdout: '' });
      expect(stderr).toContain(message);
    }
  });

  it
    .skipIf(!existsSync('/dev/full'))
    .each(['run hello', 'run hello --json', 'certs root --seed 7', 'measure attester', 'doctor'])(
    'ends with 125 and a message where its output cannot be written: %s',
    (line) => {
      const full = openSync('/dev/full', 'w');
      const { status, stderr } = spawnSync(process.execPath, [cli, ...line.split(' ')], {
        encoding: 'utf8',
        stdio: ['ignore', full, 'pipe'],
      });
      closeSync(full);
      expect(status).toBe(125);
      expect(stderr).toMatch(
        /^(ARK-Milan [0-9a-f]{64}\n)?softcvm: stdout: ENOSPC: no space left on device, write\n$/,
      );
    },
  );

  it('shows its help and its version with 0', () => {
    expect(softcvm('--version')).toMatchObject({ status: 0, stdout: '0.1.0\n' });
    expect(softcvm('run', '--help').stdout).toContain('--timeout');
  });

  it('says what the machine offers', () => {
    const { status, stdout } = softcvm('doctor', '--json');
    const findings: { name: string; state: string; hint?: string }[] = JSON.parse(stdout);
    expect(status).toBe(0);
    expect(findings.map(({ name }) => name)).toEqual(
      expect.arrayContaining(['node', 'host memory', 'RAM', '/dev/kvm', 'seccomp', 'gcc']),
    );
    expect(findings.filter(({ state, hint }) => state === 'missing' && hint === undefined)).toEqual([]);
  });

  it('shows the console as it comes, not at the end', async () => {
    const child = spawn(process.execPath, [cli, 'run', 'loops-long']);
    let text = '';
    const seen = await new Promise<boolean>((resolve) => {
      child.stdout.on('data', (bytes) => {
        text += bytes;
        if (text.includes('sieve ..')) resolve(true);
      });
      child.on('close', () => resolve(false));
    });
    expect(seen).toBe(true);
    expect(text).not.toContain('fib');
    child.kill();
  });

  it('demo runs two guests and an SNP guest, and ends with a verdict', () => {
    const { status, stdout } = softcvm('demo');
    expect(status).toBe(0);
    expect(stdout).toContain('Hello from a guest');
    expect(stdout).toContain('conversions: all as they should be');
    expect(stdout).toMatch(/pages converted, there or back +0 +2054\n/);
    expect(stdout).toContain(' ok   report.signature: made by the key of the VCEK');
    expect(stdout).toContain(' ok   measurement: ');
    expect(stdout).not.toContain('FAIL');
    expect(stdout).toMatch(
      /verdict: the guest is what it says it is \(SoftCVM’s own root: nobody else trusts it\)\n$/,
    );
  });
});

const gcc = spawnSync('gcc', ['--version']).status === 0;
if (!gcc) console.log('skipped: gcc is not installed');

describe.skipIf(!gcc)('a stranger’s C file', () => {
  const FLAGS = ['-O2', '-static', '-nostdlib', '-ffreestanding', '-mno-red-zone', '-fno-pic'];

  function compile(name: string, source: string): string {
    writeFileSync(join(folder, `${name}.c`), source);
    const { status, stderr } = spawnSync('gcc', [...FLAGS, '-o', `${name}.elf`, `${name}.c`], {
      cwd: folder,
      encoding: 'utf8',
    });
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    return `${name}.elf`;
  }

  const OUTB = `static inline void outb(unsigned short port, unsigned char value) {
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
  }
  static void print(const char *text) { while (*text) outb(0x3f8, *text++); }
  static void print_number(unsigned long value) { if (value >= 10) print_number(value / 10); outb(0x3f8, '0' + value % 10); }
  `;

  it('built with plain gcc prints and exits', () => {
    const path = compile(
      'plain',
      `${OUTB} void _start(void) { print("plain\\n"); outb(0xf4, 42); for (;;); }`,
    );
    expect(softcvm('run', path)).toEqual({ status: 42, stdout: 'plain\n', stderr: '' });
  });

  it.each(['vmmcall', 'vmcall'])('converts its memory by %s', (instruction) => {
    const path = compile(
      instruction,
      `${OUTB}
      static char pages[4 * 4096] __attribute__((aligned(4096)));
      static long map(void *page, unsigned long count, unsigned long attributes) {
        long answer;
        __asm__ volatile("${instruction}" : "=a"(answer) : "a"(12), "b"(page), "c"(count), "d"(attributes) : "memory");
        return answer;
      }
      static int sum(const char *page) { int total = 0; for (int i = 0; i < 4096; i++) total += page[i]; return total; }
      void _start(void) {
        for (unsigned i = 0; i < sizeof pages; i++) pages[i] = 1;
        if (map(pages + 4096, 2, 0) != 0) outb(0xf4, 1);
        if (sum(pages) != 4096 || sum(pages + 4096) != 0 || sum(pages + 3 * 4096) != 4096) outb(0xf4, 2);
        pages[4096] = 7;
        if (sum(pages + 4096) != 7) outb(0xf4, 3);
        if (map(pages + 4096, 2, 16) != 0) outb(0xf4, 4);
        if (sum(pages + 4096) != 0 || sum(pages + 3 * 4096) != 4096) outb(0xf4, 5);
        print("converted\\n");
        outb(0xf4, 0);
        for (;;);
      }`,
    );
    const { status, stdout } = softcvm('run', path, '--json');
    const { console: text, memory, exits } = JSON.parse(stdout);
    expect({ status, text }).toEqual({ status: 0, text: 'converted\n' });
    expect(memory.conversions).toBe(4);
    expect(exits.hypercall).toBe(2);
  });

  it('may compute what gcc vectorises', () => {
    const ARRAYS = `static unsigned char a[1024], b[1024];
      static unsigned short w[1024];
      static int d[1024];
      static unsigned long q[1024];`;
    const COMPUTE = `
      for (int i = 0; i < 1024; i++) {
        a[i] = i * 7; b[i] = i * 13 + 5; w[i] = i * 333; d[i] = i * i - 5000; q[i] = i * 0x123456789ul;
      }
      unsigned long sum = 0;
      for (int i = 0; i < 1024; i++) a[i] = a[i] > b[i] ? a[i] - b[i] : b[i] - a[i];
      for (int i = 0; i < 1024; i++) w[i] = (unsigned short)(w[i] * 3 + a[i]);
      for (int i = 0; i < 1024; i++) d[i] = d[i] < 0 ? -d[i] : d[i];
      for (int i = 0; i < 1024; i++) q[i] = (q[i] << 3) ^ (q[i] >> 5);
      for (int i = 0; i < 1024; i++) sum += a[i] + w[i] + (unsigned)d[i] + (q[i] & 0xffff);`;
    const path = compile(
      'vectors',
      `${OUTB} ${ARRAYS} void _start(void) { ${COMPUTE} print_number(sum); outb(0xf4, 0); for (;;); }`,
    );
    writeFileSync(
      join(folder, 'native.c'),
      `#include <stdio.h>\n${ARRAYS} int main(void) { ${COMPUTE} printf("%lu", sum); }`,
    );
    expect(spawnSync('gcc', ['-O0', '-o', 'native', 'native.c'], { cwd: folder }).status).toBe(0);
    const want = spawnSync(join(folder, 'native'), { encoding: 'utf8' }).stdout;
    expect(softcvm('run', path)).toEqual({ status: 0, stdout: want, stderr: '' });
  });
});
