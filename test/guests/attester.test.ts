/** The guest attester: what it gets from firmware holds before a relying party that knows the authority's root and the image. */
import { afterEach, describe, expect, it } from 'vitest';
import { type Verdict, verifyReport } from '../../src/attest/index.ts';
import { Authority } from '../../src/authority/authority.ts';
import type { Hva } from '../../src/base/address.ts';
import {
  createHost,
  type Host,
  MiB,
  type RunReport,
  readImage,
  type SnpMachineOptions,
  type Vm,
} from '../../src/index.ts';
import { ramPointer } from '../../src/vmm/memory/memory-region.ts';

const CERTIFICATES = '/run/certificates';
/** Where the guest has its request, in shared memory. */
const REQUEST = 0x400000;
const RESPONSE = 0x401000;
const guestData = Uint8Array.from({ length: 64 }, (_, i) => 3 * i + 1);

let host: Host | undefined;
afterEach(() => host?.close());

interface Options {
  readonly generation?: 'milan' | 'genoa' | 'turin';
  readonly key?: 'VCEK' | 'VLEK' | 'none';
  readonly kernel?: '7.2' | '6.12';
  readonly early?: readonly ['certs'];
  readonly snp?: SnpMachineOptions;
  /** Asked before each answer: whether to put the guest off. */
  readonly busy?: (vm: Vm) => boolean;
  /** After an answer of firmware, before the guest sees it. */
  readonly answered?: (vm: Vm) => void;
  /** Bytes behind the certificates' end. */
  readonly padding?: number;
}

async function attester(options: Options = {}): Promise<{ run: RunReport; root: Uint8Array }> {
  const { generation = 'milan', key = 'VCEK', kernel = '7.2', early = [], padding = 0 } = options;
  const authority = Authority.seeded(5);
  const chip = authority.chip(generation);
  host = createHost({ memory: 128 * MiB, chip, kernel, early, seed: 2 });
  if (key !== 'none') {
    const fd = host.process.open(CERTIFICATES);
    const table = await authority.certificateTable(chip, key);
    host.process.pwrite(fd, table, 0n);
    host.process.ftruncate(fd, BigInt(table.length + padding));
    host.process.close(fd);
  }
  const vm: Vm = host.createVm({
    type: 'sev-snp',
    memory: 16 * MiB,
    ...(await readImage('attester')),
    snp: {
      guestData,
      ...(key === 'none'
        ? {}
        : {
            certificates: { path: CERTIFICATES, busy: () => options.busy?.(vm) ?? false },
          }),
      ...options.snp,
    },
  });
  if (key === 'VLEK') {
    const { wrapped } = await authority.loadedKey(chip);
    const data = new Uint8Array(16);
    data[0] = 16;
    host.process.sevIssueCommand(host.process.openSev(), { cmd: 12, data, blob: wrapped });
  }
  // The VMM gives its lock up when firmware has answered.
  const { process } = host;
  const { close } = process;
  process.close = (fd) => {
    close.call(process, fd);
    options.answered?.(vm);
  };
  const root = await authority.ark(chip.personality.product);
  const run = await vm.run({ timeoutMs: 60_000 });
  process.close = close;
  return { run, root };
}

async function judge({ run, root }: Awaited<ReturnType<typeof attester>>): Promise<Verdict> {
  const pem = (run.certificates ?? []).filter(({ kind }) => kind !== 'CRL').map(({ pem }) => pem);
  return verifyReport(run.report!, {
    certificates: pem.map((text) => new TextEncoder().encode(text)),
    roots: [root],
    policy: { measurement: run.launch!.measurement, reportData: guestData },
  });
}

describe('the guest attester', () => {
  it.each(['milan', 'genoa', 'turin'] as const)('proves itself on a %s', async (generation) => {
    const result = await attester({ generation });
    const { run } = result;
    expect(run.exit).toEqual({ reason: 'debug-exit', code: 0 });
    expect(run.certificates!.map(({ kind }) => kind)).toEqual(['VCEK', 'ASK', 'ARK', 'CRL']);
    expect(run.exits.req_certs).toBe(2);
    expect(run.instructions).toBeLessThan(5_000_000);
    const verdict = await judge(result);
    expect(verdict.failures).toEqual([]);
    expect(verdict.ok).toBe(true);
  });

  it('shows what it was launched with', async () => {
    const hostData = new Uint8Array(32).fill(9);
    const { run } = await attester({
      snp: {
        guestData,
        guest: { policy: 0xb0000n, 'host-data': Buffer.from(hostData).toString('base64') },
      },
    });
    const report = run.report!;
    expect(report.subarray(0xc0, 0xe0)).toEqual(hostData);
    expect(new DataView(report.buffer, report.byteOffset).getBigUint64(8, true)).toBe(0xb0000n);
    expect(run.launch!.policy).toBe(0xb0000n);
    expect(report.subarray(0x90, 0xc0)).toEqual(run.launch!.measurement);
    expect(report.subarray(0x50, 0x90)).toEqual(guestData);
  });

  it('is refused where one bit of what it says differs', async () => {
    const result = await attester();
    result.run.report![0x52]! ^= 1;
    expect((await judge(result)).ok).toBe(false);
  });

  it('asks again while the host is busy', async () => {
    let asked = 0;
    const { run } = await attester({ busy: () => asked++ % 3 !== 0 });
    expect(run.exit.code).toBe(0);
    expect(run.exits.req_certs).toBe(4);
  });

  it.each([
    ['tag', 0x00, 'the request failed: 0xb'],
    ['sequence number', 0x20, 'the request failed: 0xb'],
    ['version', 0x35, 'the request failed: 0xb'],
    ['report data', 0x60, 'the request failed: 0xb'],
  ] as const)('sees that its host changed the %s of the message', async (_, offset, message) => {
    const { run } = await attester({
      busy: (vm) => {
        const at = (ramPointer(vm.machine.ram, REQUEST) + offset) as Hva;
        const byte = new Uint8Array(1);
        host!.process.memory.read(at, byte);
        host!.process.memory.write(at, Uint8Array.of(byte[0]! ^ 1));
        return false;
      },
    });
    expect(run.console).toBe(`attester: ${message}\n`);
    expect(run.exit.code).toBe(1);
  });

  const byteOf = (vm: Vm, gpa: number) => ramPointer(vm.machine.ram, gpa) as Hva;
  it.each([
    ['tag', 0x00, 'tag of the answer: 0x4'],
    ['sequence number', 0x20, 'sequence number of the answer: 0x5'],
    ['type', 0x34, 'type of the answer: 0x7'],
    ['size', 0x36, 'size of the answer: 0x4c1'],
    ['key number, which is authenticated', 0x3c, 'tag of the answer: 0x4'],
    ['status', 0x60, 'tag of the answer: 0x4'],
    ['last byte', 0x60 + 0x4bf, 'tag of the answer: 0x4'],
  ] as const)('sees that its host changed the %s of firmware’s answer', async (_, offset, message) => {
    const { run } = await attester({
      answered: (vm) => {
        const { memory } = host!.process;
        const byte = new Uint8Array(1);
        memory.read(byteOf(vm, RESPONSE + offset), byte);
        memory.write(byteOf(vm, RESPONSE + offset), Uint8Array.of(byte[0]! ^ 1));
      },
    });
    expect(run.console).toBe(`attester: ${message}\n`);
    expect(run.exit.code).toBe(1);
    expect(run.report).toBeUndefined();
  });

  it('sees that its host gives it an earlier answer', async () => {
    const earlier = new Uint8Array(4096);
    let answers = 0;
    const { run } = await attester({
      answered: (vm) => {
        const { memory } = host!.process;
        if (++answers === 2) memory.write(byteOf(vm, RESPONSE), earlier);
      },
      // By the time that it asks for the second time its first answer is there.
      busy: (vm) => {
        host!.process.memory.read(byteOf(vm, RESPONSE), earlier);
        return false;
      },
    });
    expect(new DataView(earlier.buffer).getBigUint64(0x20, true)).toBe(2n);
    expect(run.console).toBe('attester: sequence number of the answer: 0x2\n');
    expect(run.exit.code).toBe(1);
  });

  it('has its report signed by the provider’s key where the chip has one', async () => {
    const result = await attester({ key: 'VLEK' });
    const { run, root } = result;
    expect(run.certificates!.map(({ kind }) => kind)).toEqual(['VLEK', 'ASK', 'ARK', 'CRL']);
    const verdict = await judge(result);
    expect(verdict.failures).toEqual([]);
    const certificates = run
      .certificates!.filter(({ kind }) => kind !== 'CRL')
      .map(({ pem }) => new TextEncoder().encode(pem));
    const asked = { certificates, roots: [root] };
    expect((await verifyReport(run.report!, { ...asked, policy: { signingKey: 'VLEK' } })).ok).toBe(true);
    expect((await verifyReport(run.report!, { ...asked, policy: { signingKey: 'VCEK' } })).ok).toBe(false);
  });

  it('gives as much room as the certificates need', async () => {
    const { run } = await attester({ padding: 60 * 4096 });
    expect(run.exit.code).toBe(0);
    expect(run.certificates).toHaveLength(4);
  });

  it('says so where they need more than it has', async () => {
    const { run } = await attester({ padding: 80 * 4096 });
    expect(run.console).toContain('attester: pages of certificates: ');
    expect(run.exit.code).toBe(1);
    expect(run.report).toBeUndefined();
  });

  it.each(['7.2', '6.12'] as const)(
    'gets a report without certificates where the host has none, kernel %s',
    async (kernel) => {
      const { run } = await attester({ key: 'none', kernel });
      expect(run.exit.code).toBe(0);
      expect(run.certificates).toBeUndefined();
      expect(run.report).toHaveLength(1184);
    },
  );

  it('gets none on 6.12 whatever the host has: that kernel never asks', async () => {
    const { run } = await attester({ kernel: '6.12' });
    expect(run.exit.code).toBe(0);
    expect(run.exits.req_certs).toBe(0);
    expect(run.certificates).toBeUndefined();
  });

  it.each(['7.2', '6.12'] as const)(
    'gets certificates by the early form too, which says when the report is made, kernel %s',
    async (kernel) => {
      const result = await attester({ early: ['certs'], kernel });
      expect(result.run.exit.code).toBe(0);
      // Too small; certificates; done.
      expect(result.run.exits.req_certs).toBe(3);
      expect((await judge(result)).ok).toBe(true);
    },
  );
});
