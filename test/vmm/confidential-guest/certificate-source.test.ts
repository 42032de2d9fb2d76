/**
 * Certificates that come with reports, while somebody updates the machine: new firmware, SNP_COMMIT, SNP_SET_CONFIG and the certificates' file, under the exclusive lock. The
 * updater tries at every point between a guest's request and its answer. A certificate here is the TCB that it is for.
 */
import { describe, expect, it } from 'vitest';
import { decodeCertificateTable, encodeCertificateTable } from '../../../src/abi/certificate-table.ts';
import { CertificateSource } from '../../../src/vmm/confidential-guest/certificate-source.ts';
import { GhcbBench } from '../../kernel/kvm/ghcb-bench.ts';
import { GuestMessages } from '../../kernel/kvm/guest-messages.ts';
import { SECRETS, SHARED } from '../../kernel/kvm/snp-bench.ts';
import { Random } from '../../oracle/random.ts';

const REQUEST = SHARED;
const RESPONSE = SHARED + 0x1000;
const CERTS = SHARED + 0x2000;
const VCEK = '63da758d-e664-4564-adc5-f4b93be8accd';
const PATH = '/certificates';

class Machine {
  readonly bench: GhcbBench;
  readonly messages: GuestMessages;
  readonly source: CertificateSource;
  readonly isEarly: boolean;
  updates = 0;
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
    this.#writeFile();
  }

  /** The updater: everything or nothing. */
  update(): void {
    const { process, chip, kernel, sevFd } = this.bench.snp;
    const fd = process.open(PATH);
    if (process.lock(fd, 'exclusive')) {
      this.updates++;
      const tcb = chip.tcbOf({ snp: 60 + Math.floor(this.updates / 200), microcode: this.updates % 200 });
      expect(kernel.secureProcessor!.updateFirmware({ tcb })).toBe(0);
      process.sevIssueCommand(sevFd, { cmd: 10 });
      const config = new Uint8Array(64);
      new DataView(config.buffer).setBigUint64(0, tcb, true);
      process.sevIssueCommand(sevFd, { cmd: 11, data: config });
      this.#writeFile();
    } else this.refused++;
    process.close(fd);
  }

  #writeFile(): void {
    const { process, chip } = this.bench.snp;
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, chip.reportedTcb, true);
    const fd = process.open(PATH);
    process.pwrite(fd, encodeCertificateTable([{ guid: VCEK, bytes }]), 0n);
    process.close(fd);
  }

  /** A guest asks for a report; `between` is called between any two steps. The TCB of the report, and that of the certificate. */
  report(between: () => void): { reported: bigint; certified: bigint } {
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
    const report = this.messages.open(bench.snp.read(RESPONSE, 4096));
    const [certificate] = decodeCertificateTable(bench.snp.read(CERTS, 4096));
    return {
      reported: new DataView(report.buffer, report.byteOffset).getBigUint64(0x20 + 0x180, true),
      certified: new DataView(certificate!.bytes.slice().buffer).getBigUint64(0, true),
    };
  }

  set busy(busy: boolean) {
    this.#busy = busy;
  }
}

const SEED = 20_261_121;

describe('certificates under a lock', () => {
  for (const form of ['landed', 'early'] as const) {
    it(`${form}: of a thousand reports none carries another TCB's, whenever the machine is updated (seed ${SEED})`, () => {
      const random = new Random(SEED);
      const machine = new Machine(form, 'shared');
      const between = (): void => {
        if (random.oneIn(30)) machine.update();
      };
      for (let i = 0; i < 1000; i++) {
        const { reported, certified } = machine.report(between);
        if (reported !== certified) expect({ i, reported }).toEqual({ i, reported: certified });
      }
      expect(machine.updates).toBeGreaterThan(50);
      expect(machine.refused).toBeGreaterThan(20);
      expect(machine.source.served).toBe(1000);
      machine.bench.close();
    });

    it(`${form}: without locking some do`, () => {
      const random = new Random(SEED);
      const machine = new Machine(form, 'off');
      let wrong = 0;
      for (let i = 0; i < 50; i++) {
        const { reported, certified } = machine.report(() => {
          if (random.oneIn(6)) machine.update();
        });
        if (reported !== certified) wrong++;
      }
      expect(machine.refused).toBe(0);
      expect(wrong).toBeGreaterThan(2);
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
      const { reported, certified } = machine.report(() => {});
      expect(reported).toBe(certified);
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
      machine.update();
      expect(machine.updates).toBe(before + 1);
    });
  }

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
    const { reported, certified } = machine.report(() => {});
    expect(reported).toBe(certified);
  });
});
