-- the ledger: campaigns, what was issued of them, how each came to be what it is, and the events still to be sent.
--
-- the embedded twin of migrations/postgres: same tables, same constraint names, same meaning (read the reasons
-- there). sqlite has one writer, so the cap needs no lock: a seat exists once per campaign (unique) and is a number
-- from 1 to max_issue_count (trigger). sqlite names no failed constraint beyond its columns, so triggers begin their
-- message with the constraint's name.
--
-- times are microseconds since 1970 in utc, money is whole units.

create table coupons (
    coupon_id           integer primary key autoincrement,
    coupon_name         text    not null,
    discount_type       text    not null,
    discount_value      integer not null,
    max_discount_amount integer,
    min_order_amount    integer not null default 0,
    max_issue_count     integer not null,
    issue_from          integer,
    issue_until         integer,
    valid_from          integer not null,
    valid_to            integer not null,
    status              text    not null default 'DRAFT',
    epoch               integer not null default 1,
    gate_stale          boolean not null default false,
    created_by          text    not null,
    created_at          integer not null,
    updated_at          integer not null,
    constraint coupons_discount_type_known check (discount_type in ('FIXED', 'PERCENTAGE')),
    constraint coupons_discount_value_sane check (discount_value >= 1 and (discount_type = 'FIXED' or discount_value <= 100)),
    constraint coupons_max_discount_amount_positive check (max_discount_amount >= 1),
    constraint coupons_min_order_amount_not_negative check (min_order_amount >= 0),
    constraint coupons_max_issue_count_positive check (max_issue_count >= 1),
    constraint coupons_issue_window_ordered check (issue_from < issue_until),
    constraint coupons_validity_ordered check (valid_from < valid_to),
    constraint coupons_status_known check (status in ('DRAFT', 'OPEN', 'PAUSED', 'CLOSED')),
    constraint coupons_epoch_positive check (epoch >= 1)
);

create index coupons_gate_stale on coupons (coupon_id) where gate_stale;

-- ids come in blocks of 256; sqlite has no sequences, so the next block starts here.
create table id_blocks (
    name text    primary key,
    next integer not null
) without rowid;

insert into id_blocks (name, next) values ('user_coupon_id', 1);

create table user_coupons (
    user_coupon_id  integer primary key,
    coupon_id       integer not null,
    user_id         integer not null,
    slot_no         integer not null,
    epoch           integer not null,
    admission_token text    not null,
    status          text    not null default 'ACTIVE',
    issued_at       integer not null,
    order_id        text,
    order_amount    integer,
    discount_amount integer,
    used_at         integer,
    last_seq        integer not null default 1,
    changed_at      integer not null,
    constraint user_coupons_coupon_exists foreign key (coupon_id) references coupons (coupon_id),
    constraint user_coupons_one_per_slot unique (coupon_id, slot_no),
    constraint user_coupons_one_per_user unique (coupon_id, user_id),
    constraint user_coupons_user_positive check (user_id >= 1),
    constraint user_coupons_slot_positive check (slot_no >= 1),
    constraint user_coupons_status_known check (status in ('ACTIVE', 'USED', 'REVOKED')),
    constraint user_coupons_use_complete check (
        case when status = 'USED'
            then order_id is not null and order_amount is not null and discount_amount is not null and used_at is not null
            else order_id is null and order_amount is null and discount_amount is null and used_at is null
        end),
    constraint user_coupons_discount_within_order check (discount_amount between 0 and order_amount)
);

create index user_coupons_by_user on user_coupons (user_id, user_coupon_id desc);

create trigger user_coupons_slot_within_limit
    before insert on user_coupons
    when new.slot_no > (select max_issue_count from coupons where coupon_id = new.coupon_id)
begin
    select raise(abort, 'user_coupons_slot_within_limit: the slot is above the campaign''s limit');
end;

create trigger user_coupons_epoch_current
    before insert on user_coupons
    when new.epoch <> (select epoch from coupons where coupon_id = new.coupon_id)
begin
    select raise(abort, 'user_coupons_epoch_current: the campaign is in another epoch');
end;

create trigger user_coupons_keep_identity
    before update of user_coupon_id, coupon_id, user_id, slot_no, issued_at on user_coupons
begin
    select raise(abort, 'user_coupons_identity_fixed: a user coupon keeps its campaign, user and slot');
end;

create trigger coupons_limit_covers_issued
    before update of max_issue_count on coupons
    when new.max_issue_count < old.max_issue_count
        and exists (select 1 from user_coupons where coupon_id = new.coupon_id and slot_no > new.max_issue_count)
begin
    select raise(abort, 'coupons_limit_covers_issued: seats above the new limit are issued');
end;

create trigger coupons_epoch_rises
    before update of epoch on coupons
    when new.epoch < old.epoch
begin
    select raise(abort, 'coupons_epoch_rises: an epoch never returns');
end;

create table coupon_history (
    user_coupon_id  integer not null,
    seq             integer not null,
    coupon_id       integer not null,
    user_id         integer not null,
    slot_no         integer not null,
    from_status     text,
    to_status       text    not null,
    event_id        text    not null,
    request_id      text    not null,
    order_id        text,
    order_amount    integer,
    discount_amount integer,
    reason          text,
    at              integer not null,
    constraint coupon_history_pkey primary key (user_coupon_id, seq),
    constraint coupon_history_begins_issued check ((seq = 1) = (from_status is null)),
    constraint coupon_history_to_status_known check (to_status in ('ACTIVE', 'USED', 'REVOKED'))
) without rowid;

create trigger coupon_history_never_updated before update on coupon_history
begin
    select raise(abort, 'coupon_history_append_only: the history is append-only');
end;

create trigger coupon_history_never_deleted before delete on coupon_history
begin
    select raise(abort, 'coupon_history_append_only: the history is append-only');
end;

create table outbox (
    id          integer primary key autoincrement,
    event_id    text    not null,
    lane        integer not null,
    topic       text    not null,
    key         text    not null,
    headers     text    not null,
    payload     blob    not null,
    created_at  integer not null,
    sent_at     integer,
    parked_at   integer,
    park_reason text
);

create index outbox_unsent on outbox (id) where sent_at is null and parked_at is null;
create index outbox_parked on outbox (key) where parked_at is not null;
create index outbox_sent on outbox (sent_at) where sent_at is not null;

create table relay_lease (
    lane       integer primary key,
    holder     text    not null,
    token      integer not null,
    expires_at integer not null
);

create table idempotency_keys (
    key         text    primary key,
    fingerprint text    not null,
    response    text    not null,
    created_at  integer not null
) without rowid;

create index idempotency_keys_by_age on idempotency_keys (created_at);

create table issuance_fence (
    admission_token text    primary key,
    coupon_id       integer not null,
    user_id         integer not null,
    fenced_at       integer not null
) without rowid;
