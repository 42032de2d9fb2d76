/**
 * Certificates that come with reports, while somebody updates the machine: new firmware, SNP_COMMIT and SNP_SET_CONFIG, or SNP_VLEK_LOAD of a provider's next key, and the
 * certificates' file, under the exclusive lock. The updater tries at every point between a guest's request and its answer. A certificate here is the TCB and the public key that it
 * is for.
 */
import { createPublicKey, type KeyObject, verify } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { decodeCertificateTable, encodeCertificateTable } from '../../../src/abi/certificate-table.ts';
import { LinuxError } from '../../../src/base/errors.ts';
import { VLEK_SIZE, vlekSigningKey, wrapVlek } from '../../../src/hardware/chip.ts';
import { CertificateSource } from '../../../src/vmm/confidential-guest/certificate-source.ts';
import { updateCertificates } from '../../../src/vmm/confidential-guest/certificate-updater.ts';
import { GhcbBench } from '../../kernel/kvm/ghcb-bench.ts';
import { GuestMessages } from '../../kernel/kvm/guest-messages.ts';
import { SECRETS, SHARED } from '../../kernel/kvm/snp-bench.ts';
import { Random } from '../../oracle/random.ts';

const REQUEST = SHARED;
const RESPONSE = SHARED + 0x1000;
const CERTS = SHARED + 0x2000;
const VLEK = 'a8074bc2-a25a-483e-aae6-39c045a0b8a1';
const PATH = '/certificates';

class Machine {
  readonly bench: GhcbBench;
  readonly messages: GuestMessages;
  readonly source: CertificateSource;
  readonly isEarly: boolean;
  updates = 0;
  vlekUpdates = 0;
  /** How many updates there were when a signature was last found right: without another one it stays so. */
  #verifiedAt = -1;
  refused = 0;
  #busy = false;

  constructor(form: 'landed' | 'early', locking: 'shared' | 'off') {
    this.isEarly = form === 'early';
    this.bench = new GhcbBench({
      ...(this.isEarly ? { early: ['certs'] as const } : { certs: true }),
      launch: (snp) => snp.update(5, SECRETS, 4096),
    }).register();
    const { snp } = this.bench;
    this.messages = new GuestMessages(snp);
    this.source = new CertificateSource(
      snp.process,
      { path: PATH, locking, busy: () => this.#busy },
      (gpa, bytes) => this.bench.write(gpa, bytes),
    );
    expect(updateCertificates(snp.process, PATH, () => this.#loadKey())).toBe(true);
  }

  /** The updater: everything or nothing. A key is loaded for a TCB, so that a new TCB wants a new one. */
  update(what: 'TCB' | 'VLEK'): void {
    const { process, chip, kernel, sevFd } = this.bench.snp;
    const done = updateCertificates(process, PATH, () => {
      this.updates++;
      if (what === 'TCB') {
        const tcb = chip.tcbOf({ snp: 60 + Math.floor(this.updates / 200), microcode: this.updates % 200 });
        expect(kernel.secureProcessor!.updateFirmware({ tcb })).toBe(0);
        process.sevIssueCommand(sevFd, { cmd: 10 });
        const config = new Uint8Array(64);
        new DataView(config.buffer).setBigUint64(0, tcb, true);
        process.sevIssueCommand(sevFd, { cmd: 11, data: config });
      } else this.vlekUpdates++;
      return this.#loadKey();
    });
    if (!done) this.refused++;
  }

  /** Loads a provider's next key. Returns the table with its certificate. */
  #loadKey(): Uint8Array {
    const { process, chip, sevFd } = this.bench.snp;
    const tcb = chip.reportedTcb;
    const sticks = new Uint8Array(VLEK_SIZE).fill(this.updates & 0xff);
    sticks[0] = this.updates >> 8;
    const blob = wrapVlek({ sticks, tcb, wrappingKey: chip.vlekWrappingKey(tcb), iv: new Uint8Array(12) });
    const data = new Uint8Array(16);
    data[0] = 16;
    process.sevIssueCommand(sevFd, { cmd: 12, data, blob });
    const spki = vlekSigningKey(sticks, 'random').publicKey.export({ type: 'spki', format: 'der' });
    const bytes = new Uint8Array(8 + spki.length);
    new DataView(bytes.buffer).setBigUint64(0, tcb, true);
    bytes.set(spki, 8);
    return encodeCertificateTable([{ guid: VLEK, bytes }]);
  }

  /** A guest asks for a report; `between` is called between any two steps. What of the certificate is not the report's. */
  report(between: () => void): 'nothing' | 'TCB' | 'key' {
    const { bench } = this;
    const { vcpu } = bench.snp;
    bench.write(REQUEST, this.messages.reportRequest(new Uint8Array(64)));
    between();
    bench.request({
      code: 0x8000_0012n,
      info1: BigInt(REQUEST),
      info2: BigInt(RESPONSE),
      rax: BigInt(CERTS),
      rbx: 1n,
    });
    while (bench.exitReason === (this.isEarly ? 40 : 43)) {
      between();
      if (this.isEarly) this.source.requestedEarly(vcpu);
      else this.source.requested(vcpu);
      between();
      const result = vcpu.run();
      between();
      if (!this.isEarly) {
        if (result === -4) {
          this.source.finished(vcpu);
          between();
          vcpu.run();
        }
      }
    }
    expect(this.source.holds(vcpu)).toBe(false);
    const report = this.messages.open(bench.snp.read(RESPONSE, 4096)).slice(0x20);
    const [certificate] = decodeCertificateTable(bench.snp.read(CERTS, 4096));
    const bytes = certificate!.bytes.slice();
    const reported = new DataView(report.buffer).getBigUint64(0x180, true);
    if (new DataView(bytes.buffer).getBigUint64(0, true) !== reported) return 'TCB';
    const key = createPublicKey({ key: Buffer.from(bytes.subarray(8)), format: 'der', type: 'spki' });
    if (this.updates === this.#verifiedAt) return 'nothing';
    if (!isSignedBy(report, key)) return 'key';
    this.#verifiedAt = this.updates;
    return 'nothing';
  }

  set busy(busy: boolean) {
    this.#busy = busy;
  }
}

function isSignedBy(report: Uint8Array, key: KeyObject): boolean {
  const number = (at: number) => Buffer.from(report.subarray(at, at + 48)).reverse();
  const signature = Buffer.concat([number(0x2a0), number(0x2e8)]);
  return verify('sha384', report.subarray(0, 0x2a0), { key, dsaEncoding: 'ieee-p1363' }, signature);
}

const SEED = 20_261_121;

describe('certificates under a lock', () => {
  for (const form of ['landed', 'early'] as const) {
    it(`${form}: of a thousand reports none carries another TCB's, whenever the machine is updated, nor another key's (seed ${SEED})`, () => {
      const random = new Random(SEED);
      const machine = new Machine(form, 'shared');
      const between = (): void => {
        if (random.oneIn(30)) machine.update(random.pick(['TCB', 'VLEK']));
      };
      for (let i = 0; i < 1000; i++) {
        const wrong = machine.report(between);
        if (wrong !== 'nothing') expect({ i, wrong }).toEqual({ i, wrong: 'nothing' });
      }
      expect(machine.updates - machine.vlekUpdates).toBeGreaterThan(25);
      expect(machine.vlekUpdates).toBeGreaterThan(25);
      expect(machine.refused).toBeGreaterThan(20);
      expect(machine.source.served).toBe(1000);
      machine.bench.close();
    });

    it(`${form}: without locking some do`, () => {
      const random = new Random(SEED);
      const machine = new Machine(form, 'off');
      const wrong = { nothing: 0, TCB: 0, key: 0 };
      for (let i = 0; i < 100; i++)
        wrong[
          machine.report(() => {
            if (random.oneIn(6)) machine.update(random.pick(['TCB', 'VLEK']));
          })
        ]++;
      expect(machine.refused).toBe(0);
      expect(wrong.TCB).toBeGreaterThan(2);
      expect(wrong.key).toBeGreaterThan(2);
      machine.bench.close();
    });

    it(`${form}: a guest that is put off is told so, and nothing is locked`, () => {
      const machine = new Machine(form, 'shared');
      const { bench } = machine;
      const { vcpu } = bench.snp;
      machine.busy = true;
      bench.write(REQUEST, machine.messages.reportRequest(new Uint8Array(64)));
      const pages = { info1: BigInt(REQUEST), info2: BigInt(RESPONSE), rax: BigInt(CERTS), rbx: 1n };
      bench.request({ code: 0x8000_0012n, ...pages });
      if (form === 'early') machine.source.requestedEarly(vcpu);
      else machine.source.requested(vcpu);
      expect(machine.source.holds(vcpu)).toBe(false);
      expect(vcpu.run()).toBe(0);
      expect(bench.answer).toEqual([0n, 0x2_0000_0000n]);
      machine.busy = false;
      expect(machine.report(() => {})).toBe('nothing');
    });

    it(`${form}: a guest with too little room hears how many pages it takes, and nothing is locked`, () => {
      const machine = new Machine(form, 'shared');
      const { bench } = machine;
      const { vcpu } = bench.snp;
      bench.write(REQUEST, machine.messages.reportRequest(new Uint8Array(64)));
      const pages = { info1: BigInt(REQUEST), info2: BigInt(RESPONSE), rax: BigInt(CERTS), rbx: 0n };
      bench.request({ code: 0x8000_0012n, ...pages });
      if (form === 'early') machine.source.requestedEarly(vcpu);
      else machine.source.requested(vcpu);
      expect(machine.source.holds(vcpu)).toBe(false);
      expect(vcpu.run()).toBe(0);
      expect([...bench.answer, bench.field('rbx')]).toEqual([0n, 0x1_0000_0000n, 1n]);
      const before = machine.updates;
      machine.update('TCB');
      expect(machine.updates).toBe(before + 1);
    });
  }

  it('stay as they are when an update fails, and the lock is free again', () => {
    const machine = new Machine('landed', 'shared');
    const { process } = machine.bench.snp;
    expect(() =>
      updateCertificates(process, PATH, () => {
        throw new RangeError('no such TCB');
      }),
    ).toThrow('no such TCB');
    expect(machine.report(() => {})).toBe('nothing');
    machine.update('VLEK');
    expect(machine.vlekUpdates).toBe(1);
  });

  it('are none rather than wrong ones where the new table cannot be written', () => {
    const machine = new Machine('landed', 'shared');
    const { process } = machine.bench.snp;
    const full: typeof process = Object.create(process, {
      pwrite: {
        value: () => {
          throw new LinuxError('ENOSPC', 'the disk is full');
        },
      },
      ...Object.fromEntries(
        (['open', 'lock', 'close', 'ftruncate'] as const).map((name) => [
          name,
          { value: (...values: never[]) => (process[name] as (...all: never[]) => unknown)(...values) },
        ]),
      ),
    });
    expect(() => updateCertificates(full, PATH, () => new Uint8Array(24))).toThrow('the disk is full');
    const fd = process.open(PATH);
    expect(process.fstat(fd).size).toBe(0n);
    expect(process.lock(fd, 'exclusive')).toBe(true);
    process.close(fd);
  });

  it('is not waited for: while the updater holds it guests are put off', () => {
    const machine = new Machine('landed', 'shared');
    const { bench } = machine;
    const { vcpu, process } = bench.snp;
    const fd = process.open(PATH);
    expect(process.lock(fd, 'exclusive')).toBe(true);
    bench.write(REQUEST, machine.messages.reportRequest(new Uint8Array(64)));
    const pages = { info1: BigInt(REQUEST), info2: BigInt(RESPONSE), rax: BigInt(CERTS), rbx: 1n };
    bench.request({ code: 0x8000_0012n, ...pages });
    machine.source.requested(vcpu);
    vcpu.run();
    expect(bench.answer).toEqual([0n, 0x2_0000_0000n]);
    process.close(fd);
    expect(machine.report(() => {})).toBe('nothing');
  });

  it('is not even tried without locking: the answer comes while the updater holds it', () => {
    const machine = new Machine('landed', 'off');
    const { bench, source } = machine;
    const { vcpu, process } = bench.snp;
    const fd = process.open(PATH);
    expect(process.lock(fd, 'exclusive')).toBe(true);
    expect(machine.report(() => {})).toBe('nothing');
    expect(source.served).toBe(1);
    source.finished(vcpu);
    expect(source.holds(vcpu)).toBe(false);
    process.close(fd);
  });

  it('does not hide what is no error of the kernel', () => {
    const { bench, messages } = new Machine('landed', 'shared');
    const { snp } = bench;
    bench.write(REQUEST, messages.reportRequest(new Uint8Array(64)));
    const pages = { info1: BigInt(REQUEST), info2: BigInt(RESPONSE), rax: BigInt(CERTS), rbx: 1n };
    bench.request({ code: 0x8000_0012n, ...pages });
    const source = new CertificateSource(snp.process, {}, () => {
      throw new TypeError('a bug');
    });
    expect(() => source.requested(snp.vcpu)).toThrow(TypeError);
  });
});
