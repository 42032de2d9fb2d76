/**
 * A guest as firmware knows it (SNP ABI specification, "Guest context"). Real firmware keeps this in the context page, encrypted with a key of its own; here the
 * page is a frame in RMP state Context under such a key, and what is secret lives in this object, which only `hardware/asp` holds.
 */
import { SNP_GUEST_STATE } from '../../abi/sev-firmware.ts';
import type { Entropy } from '../../base/entropy.ts';
import { LaunchDigest } from './launch-digest.ts';

export const NO_ID_BLOCK = {
  familyId: new Uint8Array(16),
  imageId: new Uint8Array(16),
  guestSvn: 0,
} as const;

export class GuestContext {
  /** SNP_GUEST_STATE. */
  state: number = SNP_GUEST_STATE.INIT;
  policy = 0n;
  /** 0: none. */
  asid = 0;
  /** Key of the memory controller; 0 before LAUNCH_START. */
  keyId = 0;
  /** IMI_EN: launched as an incoming migration image. */
  isMigrationImage = false;
  /** The context page of the migration agent. */
  migrationAgent: number | undefined;
  readonly gosvw = new Uint8Array(16);
  desiredTscKhz = 0;
  launchTcb = 0n;
  readonly digest = new LaunchDigest();
  /** IMD: the digest of the pages that belong to the migration image. */
  readonly imageDigest = new LaunchDigest();
  readonly reportId = new Uint8Array(32);
  readonly reportIdMa = new Uint8Array(32).fill(0xff);
  /** VM platform communication keys, by VMPL. */
  readonly vmpcks = [0, 1, 2, 3].map(() => new Uint8Array(32));
  /** Messages that went both ways under each VMPCK. */
  readonly messageCounts = new BigUint64Array(4);
  /** Offline encryption key, for pages that are swapped out. */
  readonly oek = new Uint8Array(32);
  /** VM root key. */
  readonly vmrk = new Uint8Array(32);
  readonly hostData = new Uint8Array(32);
  hasIdBlock = false;
  hasAuthorKey = false;
  isVcekDisabled = false;
  idBlock: { readonly familyId: Uint8Array; readonly imageId: Uint8Array; readonly guestSvn: number } =
    NO_ID_BLOCK;
  readonly idKeyDigest = new Uint8Array(48);
  readonly authorKeyDigest = new Uint8Array(48);

  /** LAUNCH_START: fresh secrets and a fresh identity. */
  generateSecrets(entropy: Entropy): void {
    for (const secret of [this.oek, ...this.vmpcks, this.vmrk, this.reportId]) entropy.fill(secret);
  }

  /** Overwrites what is secret. */
  wipe(): void {
    for (const secret of [this.oek, ...this.vmpcks, this.vmrk]) secret.fill(0);
  }
}
