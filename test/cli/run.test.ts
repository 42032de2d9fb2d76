import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import { type RunCommandOptions, run } from '../../src/cli/run.ts';
import { InputError } from '../../src/cli/size.ts';
import { exitWith, HALT, LOOP, print, TRIPLE_FAULT, tinyElf } from './tiny-elf.ts';

const DEFAULTS: RunCommandOptions = { type: 'sw-protected', memory: '8M', smp: '1' };
const folder = mkdtempSync(join(tmpdir(), 'softcvm-cli-'));
afterAll(() => rmSync(folder, { recursive: true }));
afterEach(() => vi.restoreAllMocks());

function image(name: string, bytes: Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

interface Output {
  status: number;
  stdout: string;
  stderr: string;
}

async function softcvm(path: string, options: Partial<RunCommandOptions> = {}): Promise<Output> {
  const output = { stdout: '', stderr: '' };
  vi.spyOn(process.stdout, 'write').mockImplementation((chunk) => {
    output.stdout += typeof chunk === 'string' ? chunk : Buffer.from(chunk).toString();
    return true;
  });
  vi.spyOn(console, 'log').mockImplementation((line) => {
    output.stdout += `${line}\n`;
  });
  vi.spyOn(console, 'error').mockImplementation((line) => {
    output.stderr += `${line}\n`;
  });
  const status = await run(path, { ...DEFAULTS, ...options });
  vi.restoreAllMocks();
  return { status, ...output };
}

describe('softcvm run: how a run ends', () => {
  it.each(['sw-protected', 'default'])(
    'the guest’s byte on port 0xf4 is the exit status, %s',
    async (type) => {
      const path = image('seven.elf', tinyElf([...print('hi\n'), ...exitWith(7)]));
      expect(await softcvm(path, { type })).toEqual({ status: 7, stdout: 'hi\n', stderr: '' });
    },
  );

  it('hlt with nothing that could wake the vCPU ends it with 0', async () => {
    expect(await softcvm(image('halt.elf', tinyElf(HALT)))).toMatchObject({ status: 0, stderr: '' });
  });

  it('with --smp every vCPU enters at the entry point, its index in EDI', async () => {
    // test edi, edi; jnz past the loop; pause; jmp back
    const waitUnlessSecond = [0x85, 0xff, 0x75, 0x04, 0xf3, 0x90, 0xeb, 0xfc];
    const path = image('smp.elf', tinyElf([...waitUnlessSecond, ...print('second\n'), ...exitWith(5)]));
    expect(await softcvm(path, { smp: '2', timeout: '20' })).toEqual({
      status: 5,
      stdout: 'second\n',
      stderr: '',
    });
  });

  it('a triple fault is 125, and says so', async () => {
    const { status, stderr } = await softcvm(image('triple.elf', tinyElf(TRIPLE_FAULT)));
    expect(status).toBe(125);
    expect(stderr).toMatch(/triple fault at rip 0x[0-9a-f]+: #UD; #GP while the double fault was delivered/);
  });

  it('a guest that loops is stopped after --timeout with 124', async () => {
    const { status, stderr, stdout } = await softcvm(image('loop.elf', tinyElf([...print('on'), ...LOOP])), {
      timeout: '0.2',
    });
    expect({ status, stdout }).toEqual({ status: 124, stdout: 'on' });
    expect(stderr).toMatch(
      /^softcvm: timeout: the guest did not end within 200 ms: vCPU 0 at rip 0x[0-9a-f]+\n$/,
    );
  });
});

describe('softcvm run --json', () => {
  it('prints one object with the console, the exits and the memory', async () => {
    const path = image('json.elf', tinyElf([...print('hi'), ...exitWith(3)]));
    const { status, stdout } = await softcvm(path, { json: true });
    const report = JSON.parse(stdout);
    expect(status).toBe(3);
    expect(Object.keys(report)).toEqual(['exit', 'console', 'instructions', 'exits', 'memory', 'wall_ms']);
    expect(report).toMatchObject({
      exit: { reason: 'debug-exit', code: 3 },
      console: 'hi',
      exits: { io: 3, mmio: 0, hypercall: 0, memory_fault: 0 },
      // 8 MiB are 2048 pages; the guest touches one
      memory: { private_pages: 2048, private_frames: 1, huge_frames: 0, conversions: 0 },
    });
    expect(report.instructions).toBeGreaterThan(7);
    expect(report.wall_ms).toBeGreaterThan(0);
  });

  it('counts accesses to what is no memory as MMIO', async () => {
    // mov ebx, 0xd0000000; mov eax, [rbx]; mov [rbx], eax; exit with al, which read as 0
    const code = [0xbb, 0x00, 0x00, 0x00, 0xd0, 0x8b, 0x03, 0x89, 0x03, 0xe6, 0xf4, 0xf4];
    const { status, stdout } = await softcvm(image('mmio.elf', tinyElf(code)), { json: true });
    expect(status).toBe(0);
    expect(JSON.parse(stdout).exits).toMatchObject({ io: 1, mmio: 2 });
  });

  it('reports the end by timeout and by shutdown in the same shape', async () => {
    const loop = await softcvm(image('loop.elf', tinyElf(LOOP)), { json: true, timeout: '0.1' });
    expect(JSON.parse(loop.stdout).exit).toMatchObject({ reason: 'timeout', code: 124 });
    expect(loop.status).toBe(124);
    const triple = await softcvm(image('triple.elf', tinyElf(TRIPLE_FAULT)), { json: true });
    expect(JSON.parse(triple.stdout).exit).toMatchObject({ reason: 'shutdown', code: 125 });
    expect(triple.status).toBe(125);
  });

  it('repeats with a seed but for the time', async () => {
    const path = image('seed.elf', tinyElf([...print('hi'), ...exitWith(0)]));
    const reports = [
      await softcvm(path, { json: true, seed: '5' }),
      await softcvm(path, { json: true, seed: '5' }),
    ];
    const [first, second] = reports.map(({ stdout }) => ({ ...JSON.parse(stdout), wall_ms: 0 }));
    expect(first).toEqual(second);
  });
});

describe('softcvm run --trace', () => {
  it('writes one JSON object a line, and they say who did what', async () => {
    const file = join(folder, 'trace.jsonl');
    const path = image('trace.elf', tinyElf(exitWith(0)));
    expect((await softcvm(path, { trace: file })).status).toBe(0);
    const events = readFileSync(file, 'utf8')
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(events.length).toBeGreaterThan(3);
    expect(events.every(({ kind, who, what }) => kind && who && what)).toBe(true);
    expect(events.some(({ kind }) => kind === 'fault')).toBe(true);
  });
});

describe('softcvm run: bad input is refused by name', () => {
  const hello = tinyElf(exitWith(0));
  const ROWS: [string, () => string, Partial<RunCommandOptions>, string][] = [
    ['no such file', () => join(folder, 'absent'), {}, 'no such file, nor a guest of that name'],
    ['an empty file', () => image('empty.elf', new Uint8Array(0)), {}, 'empty.elf: e_ident magic'],
    [
      'no ELF file',
      () => image('text.elf', new TextEncoder().encode('#!/bin/sh\n')),
      {},
      'e_ident magic: got 23 21 2f 62',
    ],
    ['a file cut off', () => image('cut.elf', hello.subarray(0, 70)), {}, 'cut.elf'],
    ['another machine', () => image('arm.elf', hello.with(18, 183)), {}, 'e_machine: got 183'],
    ['too little memory', () => image('small.elf', hello), { memory: '64K' }, 'small.elf'],
    ['memory that is no whole page', () => 'hello', { memory: '4097' }, '--memory: got 4097'],
    ['no memory', () => 'hello', { memory: '0' }, '--memory: got 0'],
    [
      'an unknown type',
      () => 'hello',
      { type: 'tdx' },
      '--type: got tdx, want sw-protected or default or sev-snp',
    ],
    ['an unknown kernel', () => 'hello', { kernel: '5.4' }, '--kernel: got 5.4, want 7.2 or 6.12'],
    [
      'an unknown early form',
      () => 'hello',
      { early: 'private-fault,sev-launch' },
      '--early: got sev-launch',
    ],
    [
      'folios of a guest_memfd without one',
      () => 'hello',
      { type: 'default', gmemHuge: true },
      '--gmem-huge: got it with --type default, whose memory is in no guest_memfd',
    ],
    [
      'a version of the real kernel',
      () => 'hello',
      { accel: 'kvm', kernel: '7.2' },
      '--accel kvm: got --kernel, which the real kernel does not have',
    ],
    ['no vCPU', () => 'hello', { smp: '0' }, '--smp: got 0'],
    ['a seed that is no number', () => 'hello', { seed: 'x' }, '--seed: got x'],
    ['no time', () => 'hello', { timeout: '0' }, '--timeout: got 0'],
    [
      'a trace that cannot be written',
      () => 'hello',
      { trace: '/nonexistent/x' },
      '--trace: got /nonexistent/x: no such directory',
    ],
    ['a folder as a trace', () => 'hello', { trace: folder }, `--trace: got ${folder}: is a directory`],
    ['a folder as an image', () => folder, {}, `image: got ${folder}: is a directory`],
    ['a host beyond 4 GiB', () => 'hello', { hostMemory: '8G' }, '--host-memory: got 8G'],
  ];
  it.each(ROWS)('%s', async (_, path, options, message) => {
    const refused = await run(path(), { ...DEFAULTS, ...options }).then(
      () => undefined,
      (error: unknown) => error,
    );
    expect(refused).toBeInstanceOf(InputError);
    expect((refused as Error).message).toContain(message);
  });
});

describe('the guests that come along', () => {
  it('hello says where it runs', async () => {
    const { status, stdout } = await softcvm('hello', { memory: '64M' });
    expect({ status, stdout }).toEqual({
      status: 0,
      stdout: 'Hello from a guest: vCPU 0, CPL 0, 64 MiB of RAM, CPU AuthenticAMD.\n',
    });
  });

  it.each([
    ['Linux 7.2', { kernel: '7.2' }],
    ['Linux 6.12', { kernel: '6.12' }],
    ['private faults in their first form', { early: 'private-fault' }],
    ['folios of 2 MiB', { gmemHuge: true }],
    ['two vCPUs', { smp: '2' }],
  ])('conversions converts there and back: %s', async (_, options) => {
    const { status, stdout } = await softcvm('conversions', { memory: '32M', json: true, ...options });
    const report = JSON.parse(stdout);
    expect(report.console).toMatch(/conversions: all as they should be\n$/);
    expect(status).toBe(0);
    // pages of the five ranges: 1, 512, 1, 512, 1; each out and back
    expect(report.memory).toMatchObject({ private_pages: 8192, conversions: 2 * 1027 });
    expect(report.exits.hypercall).toBe(10);
  });

  it('--gmem-huge backs private memory with whole folios', async () => {
    const { stdout } = await softcvm('hello', { memory: '32M', json: true, gmemHuge: true });
    // one folio under the image, one under the stack at the top of RAM
    expect(JSON.parse(stdout).memory).toMatchObject({ private_frames: 1024, huge_frames: 1024 });
  });

  it('conversions says why it cannot run in a VM without private memory', async () => {
    const { status, stdout } = await softcvm('conversions', { memory: '32M', type: 'default' });
    expect(status).toBe(1);
    expect(stdout).toContain('hypercall answered -1000');
  });

  it('faults handles every exception it raises', async () => {
    const { status, stdout } = await softcvm('faults');
    expect(stdout).toMatch(/faults: all as they should be\n$/);
    expect(status).toBe(0);
  });

  it('loops computes what a real machine computes', async () => {
    const { status, stdout } = await softcvm('loops');
    expect(stdout).toBe(
      'sieve .. 0x1b70\ncrc .. 0x12e95cc0e\ncopy .. 0x44f2640aea0e0060\nxorshift .. 0x101171c14c329f08\nfib .. 0x5584\n',
    );
    expect(status).toBe(0);
  });
});
